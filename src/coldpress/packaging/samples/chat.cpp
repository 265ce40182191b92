// Asks the model in the folder above one question. Headers and library are those of onnxruntime-genai's release:
// c++ -std=c++20 chat.cpp -I GENAI/include -L GENAI/lib -lonnxruntime-genai -o chat && ./chat "What is the capital of France?"
#include <iostream>
#include <string>

#include "ort_genai.h"

// A text as JSON has it between quotes.
std::string quoted(const std::string& text) {
  static const char digits[] = "0123456789abcdef";
  std::string found = "\"";
  for (unsigned char letter : text) {
    if (letter == '"' || letter == '\\')
      found += {'\\', static_cast<char>(letter)};
    else if (letter < 0x20)
      found += std::string("\\u00") + digits[letter >> 4] + digits[letter & 15];
    else
      found += static_cast<char>(letter);
  }
  return found + '"';
}

int main(int count, char** words) {
  OgaHandle handle;
  const std::string question = count > 1 ? words[1] : "What is the capital of France?";
  const std::string chat = "[{\"role\":\"user\",\"content\":" + quoted(question) + "}]";

  auto model = OgaModel::Create("..");
  auto tokenizer = OgaTokenizer::Create(*model);
  auto stream = OgaTokenizerStream::Create(*tokenizer);
  auto prompt = OgaSequences::Create();
  tokenizer->Encode(tokenizer->ApplyChatTemplate(nullptr, chat.c_str(), nullptr, true), *prompt);

  auto parameters = OgaGeneratorParams::Create(*model);
  parameters->SetSearchOption("max_length", 512);
  parameters->SetSearchOptionBool("do_sample", false);
  auto generator = OgaGenerator::Create(*model, *parameters);
  generator->AppendTokenSequences(*prompt);
  while (!generator->IsDone()) {
    generator->GenerateNextToken();
    std::cout << stream->Decode(generator->GetNextTokens()[0]) << std::flush;
  }
  std::cout << std::endl;
}
