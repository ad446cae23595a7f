// What calls of setcrop.js give in Node: asked as JSON on standard input, answered as JSON, errors as their message.
import { readFileSync } from "node:fs";
import ort from "onnxruntime-node";

const { module, folder, image, calls } = JSON.parse(readFileSync(0));
const { SetCrop, crop, use } = await import(module);
const read = async (path) => readFileSync(`${folder}/${path}`);
const setcrop = await SetCrop.load(folder, ort, read);
const pixels = ({ bytes, ...rest }) => ({ ...rest, data: Uint8Array.from(bytes) });
const photo = await setcrop.read(pixels(image));
use(setcrop);
const ways = {
  suggest: (options) => photo.suggest(options),
  rate: (boxes) => photo.rate(boxes),
  read: async (other) => (await setcrop.read(other?.bytes ? pixels(other) : other)).suggest({ topK: 1 }),
  crop: (options) => crop(pixels(image), options),
  load: (files) => SetCrop.load(folder, ort, async (path) => (path in files ? Buffer.from(files[path]) : read(path))),
};
const answers = [];
for (const [name, argument] of calls) {
  try {
    answers.push(await ways[name](argument));
  } catch (error) {
    answers.push(`${error.name}: ${error.message}`);
  }
}
console.log(JSON.stringify(answers));
