// What transformers.js makes of a checkpoint's folder. Asked as JSON on standard input, answered as JSON.
import { readFileSync } from "node:fs";
import { AutoImageProcessor, AutoModel, AutoProcessor, RawImage, env } from "@huggingface/transformers";

env.allowRemoteModels = false;
env.localModelPath = "";
const { folder, dtype, images } = JSON.parse(readFileSync(0));
const [processor, imageProcessor, model] = await Promise.all([
  AutoProcessor.from_pretrained(folder),
  AutoImageProcessor.from_pretrained(folder),
  AutoModel.from_pretrained(folder, dtype ? { dtype } : {}),
]);
const results = [];
for (const path of images) {
  const image = await RawImage.read(path);
  const inputs = await processor(image), { pixel_values } = await imageProcessor(image);
  const output = await model(inputs);
  results.push({
    size: [image.height, image.width],
    pixelSizes: [inputs.pixel_values.dims, pixel_values.dims],
    outputs: Object.fromEntries(["logits", "pred_boxes", "pred_ratings"].map((name) => [name, output[name].tolist()])),
  });
}
console.log(JSON.stringify({ classes: [imageProcessor.constructor.name, model.constructor.name], results }));
