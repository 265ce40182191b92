// Asks the model in the folder above one question: npm install @huggingface/transformers, then
// node chat.mjs "What is the capital of France?"
import { AutoModelForCausalLM, AutoTokenizer, TextStreamer, env } from "@huggingface/transformers";
import { basename, dirname } from "node:path";
import { fileURLToPath } from "node:url";

const folder = dirname(dirname(fileURLToPath(import.meta.url)));
env.localModelPath = dirname(folder);
env.allowRemoteModels = false;

const tokenizer = await AutoTokenizer.from_pretrained(basename(folder));
const model = await AutoModelForCausalLM.from_pretrained(basename(folder), {
  subfolder: "",
  model_file_name: "model",
  dtype: "fp32", // which stands for the file's name without an ending, not for what is in it
});

const question = process.argv[2] ?? "What is the capital of France?";
const inputs = tokenizer.chat_template
  ? tokenizer.apply_chat_template([{ role: "user", content: question }], { add_generation_prompt: true, return_dict: true })
  : tokenizer(question); // a base model continues the text
const streamer = new TextStreamer(tokenizer, { skip_prompt: true, skip_special_tokens: true });
await model.generate({ ...inputs, max_new_tokens: 256, do_sample: false, streamer });
