// AutoImageProcessor and AutoModel of transformers.js on an exported folder, and the best crop of an
// image file: node transformers.mjs FOLDER IMAGE
import path from "node:path";
import { AutoImageProcessor, AutoModel, RawImage, env } from "@huggingface/transformers";

const [folder, file] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = path.dirname(path.resolve(folder));
const name = path.basename(folder);
const processor = await AutoImageProcessor.from_pretrained(name);
const model = await AutoModel.from_pretrained(name);
const image = await RawImage.read(file);
const inputs = await processor(image);
const { logits, pred_boxes, pred_scores } = await model(inputs);
const scores = [...(pred_scores ?? logits).data];
const best = scores.indexOf(Math.max(...scores));
const [cx, cy, w, h] = pred_boxes.data.slice(4 * best, 4 * best + 4);
const clip = (value, length) => Math.round(Math.min(Math.max(value, 0), 1) * length);
const box = {
  xmin: clip(cx - w / 2, image.width),
  ymin: clip(cy - h / 2, image.height),
  xmax: clip(cx + w / 2, image.width),
  ymax: clip(cy + h / 2, image.height),
};
console.log(JSON.stringify({ shape: inputs.pixel_values.dims, box }));
