// Asks the model in the folder above one question: dotnet run -- "What is the capital of France?"
using System.Text.Json;
using Microsoft.ML.OnnxRuntimeGenAI;

var folder = Path.GetFullPath("..");
var question = args.Length > 0 ? args[0] : "What is the capital of France?";

using var model = new Model(folder);
using var tokenizer = new Tokenizer(model);
using var stream = tokenizer.CreateStream();
var chat = JsonSerializer.Serialize(new[] { new { role = "user", content = question } });
using var prompt = tokenizer.Encode(tokenizer.ApplyChatTemplate("", chat, "", true));

using var parameters = new GeneratorParams(model);
parameters.SetSearchOption("max_length", 512);
parameters.SetSearchOption("do_sample", false);
using var generator = new Generator(model, parameters);
generator.AppendTokenSequences(prompt);
while (!generator.IsDone())
{
    generator.GenerateNextToken();
    Console.Write(stream.Decode(generator.GetNextTokens()[0]));
}
Console.WriteLine();
