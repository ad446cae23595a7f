/**
 * SetCrop in the browser and in Node: well-composed crops of an image, computed where the image is.
 *
 *     import smartcrop from "./setcrop.js";                      // smartcrop.js's call
 *     const { topCrop } = await smartcrop.crop(image, { width: 400, height: 300 });
 *
 *     import { SetCrop } from "./setcrop.js";                    // everything
 *     const setcrop = await SetCrop.load("./model/", ort);
 *     const photo = await setcrop.read(image);
 *     await photo.suggest({ aspectRatio: 16 / 9, topK: 3 });     // [{ score, box: { xmin, ymin, xmax, ymax } }, ...]
 *     await photo.rate([[x1, y1, x2, y2], ...]);                 // ratings 1..5 of any boxes in pixels
 *
 * A model is a folder, or an address, with what `setcrop export onnx` writes: config.json, preprocessor_config.json,
 * onnx/model.onnx (pixel_values -> logits, pred_boxes, pred_ratings and an encoding) and, where it can rate boxes,
 * onnx/scorer.onnx (boxes and the encoding -> scores). `ort` is onnxruntime-web, or anything with its interface.
 *
 * The search is Python's (crop_search.py and crop_geometry.py), function by function and with NumPy's rounding, so
 * that both give the same crops. Boxes are [x1, y1, x2, y2] in whole pixels of the image as displayed.
 */

const MODEL = "./model/";
const ORT = "https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist/ort.wasm.min.mjs";

// ---------------------------------------------------------------------------------------------------------- numbers

/** Round half to even, as NumPy and Python do. */
function round(value) {
  const low = Math.floor(value), rest = value - low;
  if (rest !== 0.5) return rest < 0.5 ? low : low + 1;
  return low % 2 === 0 ? low : low + 1;
}

const clip = (value, low, high) => Math.min(Math.max(value, low), high);
const sum = (values) => values.reduce((total, value) => total + value, 0);
/** Without the last bits, in which one way of computing differs from another. */
const settled = (value) => round(value * 2 ** 14) / 2 ** 14;

function linspace(start, stop, count) {
  const step = count > 1 ? (stop - start) / (count - 1) : 0;
  return Array.from({ length: count }, (_, i) => (count > 1 && i === count - 1 ? stop : start + i * step));
}

/** The first index of a rising array whose value is not below the wanted one. */
function searchSorted(values, wanted) {
  let low = 0, high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < wanted) low = middle + 1;
    else high = middle;
  }
  return low;
}

function argBest(values, better) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (better(values[i], values[best])) best = i;
  return best;
}

/** Indices from the highest value to the lowest; equal ones keep their order. */
const rank = (values) => values.map((_, i) => i).sort((a, b) => values[b] - values[a]);

// ------------------------------------------------------------------------------------------------------------ boxes

const sizeOf = (box) => [box[2] - box[0], box[3] - box[1]];
const areaOf = (box) => Math.max(box[2] - box[0], 0) * Math.max(box[3] - box[1], 0);
const centreOf = (box) => [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2];
const shift = (box, [x, y], sign = 1) => [box[0] + sign * x, box[1] + sign * y, box[2] + sign * x, box[3] + sign * y];

function intersection(a, b) {
  const across = Math.min(a[2], b[2]) - Math.max(a[0], b[0]), down = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  return Math.max(across, 0) * Math.max(down, 0);
}

export function iou(a, b) {
  const shared = intersection(a, b), union = areaOf(a) + areaOf(b) - shared;
  return union > 0 ? shared / union : 0;
}

/** Indices kept by greedy non-maximum suppression, best first. */
function nms(boxes, scores, threshold, count = Infinity) {
  const taken = [];
  for (const i of rank(scores)) {
    if (taken.length >= count) break;
    if (taken.every((j) => iou(boxes[i], boxes[j]) <= threshold)) taken.push(i);
  }
  return taken;
}

/** A box of a size as near to a centre as the image ([height, width]) and what is to be kept allow. */
function place(centre, size, [height, width], keep, pixels) {
  const limit = [width, height], corner = [0, 0];
  for (const axis of [0, 1]) {
    let start = centre[axis] - size[axis] / 2;
    if (keep) {
      const low = keep[axis + 2] - size[axis], high = keep[axis];
      start = low <= high ? clip(start, low, high) : (low + high) / 2;
    }
    if (pixels) start = round(start);
    corner[axis] = Math.min(Math.max(start, 0), limit[axis] - size[axis]);
  }
  return [corner[0], corner[1], corner[0] + size[0], corner[1] + size[1]];
}

/** The box of an aspect ratio inside the image that overlaps a box most. */
function fitAspectRatio(box, ratio, [height, width], minHeight, maxHeight, keep) {
  let low = minHeight;
  const high = Math.min(width / ratio, height, maxHeight), [across, down] = sizeOf(box);
  let outX = 0, outY = 0;
  if (keep) {
    outX = Math.max(box[0] - keep[0], keep[2] - box[2], 0);
    outY = Math.max(box[1] - keep[1], keep[3] - box[3], 0);
    low = Math.max(low, (keep[2] - keep[0]) / ratio, keep[3] - keep[1]);
  }
  const area = across * down, innerX = outX / ratio, innerY = outY;
  const heights = [
    innerY + Math.sqrt(innerY ** 2 + area / ratio),
    innerX + Math.sqrt(innerX ** 2 + area / ratio),
    (outX + across) / ratio,
    outY + down,
    low,
    high,
  ].map((value) => Math.min(Math.max(value, low), high));
  const overlaps = heights.map((h) => {
    const w = h * ratio, shared = clip(w - outX, 0, across) * clip(h - outY, 0, down);
    return shared / (w * h + area - shared);
  });
  const best = heights[argBest(overlaps, (a, b) => a > b)];
  return place(centreOf(box), [Math.min(best * ratio, width), Math.min(best, height)], [height, width], keep, false);
}

/** All whole-pixel sizes [width, height] of an aspect ratio inside the image, smallest first. */
export function pixelSizes(ratio, [height, width]) {
  const wide = ratio >= 1, stretch = wide ? ratio : 1 / ratio;
  const [shortLimit, longLimit] = wide ? [height, width] : [width, height];
  const count = Math.min(shortLimit, Math.floor((longLimit + 0.5) / stretch) + 1), sizes = [];
  for (let short = 1; short <= count; short++) {
    const long = round(short * stretch);
    if (long <= longLimit) sizes.push(wide ? [long, short] : [short, long]);
  }
  return sizes.length ? sizes : [wide ? [longLimit, 1] : [1, longLimit]];
}

/** A box on whole pixels, of the nearest of the allowed sizes (smallest first). */
function roundToSizes(boxes, sizes, imageSize, keep) {
  const perimeters = sizes.map(sum);
  return boxes.map((box) => {
    const wanted = sum(sizeOf(box));
    const above = Math.min(searchSorted(perimeters, wanted), sizes.length - 1), below = Math.max(above - 1, 0);
    const nearest = wanted - perimeters[below] < perimeters[above] - wanted ? below : above;
    return place(centreOf(box), sizes[nearest], imageSize, keep, true);
  });
}

/** Boxes of each size at evenly spaced places, at most `stride` pixels apart. */
function candidateGrid(sizes, [height, width], stride, keep) {
  const boxes = [];
  for (const size of sizes) {
    const places = [0, 1].map((axis) => {
      let low = 0, high = [width, height][axis] - size[axis];
      if (keep) {
        low = Math.min(Math.max(keep[axis + 2] - size[axis], 0), high);
        high = Math.max(Math.min(high, keep[axis]), low);
      }
      return linspace(low, high, Math.ceil((high - low) / stride) + 1).map(round);
    });
    for (const x of places[0]) for (const y of places[1]) boxes.push([x, y, x + size[0], y + size[1]]);
  }
  return boxes;
}

/** Boxes without repeats, sorted by place. */
function distinct(boxes, [height, width]) {
  const keyed = new Map();
  for (const box of boxes) {
    const key = ((box[0] * (height + 1) + box[1]) * (width + 1) + box[2]) * (height + 1) + box[3];
    keyed.set(key, box);
  }
  return [...keyed.entries()].sort((a, b) => a[0] - b[0]).map((entry) => entry[1]);
}

// -------------------------------------------------------------------------------------------------- what is asked for

// Of `suggest`, as in Python's crop_options.py.
const COUNTS = ["topK", "width", "height"], SHARES = ["threshold", "nmsIou", "minArea", "maxArea"];
const OPTIONS = ["aspectRatio", ...COUNTS, ...SHARES, "minSize", "keep", "avoid", "tightness"];

const isGiven = (value) => value !== undefined && value !== null;
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const areNumbers = (values, count) => Array.isArray(values) && values.length === count && values.every(isNumber);
/** A value as one reads it in a message. */
const written = (value) => (typeof value === "number" ? `${value}` : (JSON.stringify(value) ?? `${value}`));

/** Throw a TypeError or RangeError that names the option, unless all are known, of their kinds and in their ranges. */
function checkOptions(options) {
  if (typeof options !== "object" || options === null || Array.isArray(options))
    throw new TypeError(`options must be an object such as { topK: 3 }, not ${written(options)}`);
  for (const name of Object.keys(options))
    if (!OPTIONS.includes(name)) throw new TypeError(`there is no option ${name}: the options are ${OPTIONS.join(", ")}`);
  const { aspectRatio, width, height, minArea, maxArea, minSize } = options, given = (name) => isGiven(options[name]);
  const refuse = (name, wanted) => {
    throw new RangeError(`${name} must be ${wanted}, not ${written(options[name])}`);
  };
  for (const name of COUNTS.filter(given))
    if (!(Number.isInteger(options[name]) && options[name] >= 1)) refuse(name, "a whole number of at least 1");
  for (const name of SHARES.filter(given))
    if (!(isNumber(options[name]) && options[name] >= 0 && options[name] <= 1)) refuse(name, "a number in 0..1");
  if (given("aspectRatio") && !(isNumber(aspectRatio) && aspectRatio > 0))
    refuse("aspectRatio", "width over height, a number above 0");
  if (given("minSize") && !sizeFrom(minSize)) refuse("minSize", "one number, or [width, height], of at least 1");
  if (given("minArea") && given("maxArea") && minArea > maxArea)
    throw new RangeError(`minArea (${minArea}) is larger than maxArea (${maxArea})`);
  const both = given("aspectRatio") && given("width") && given("height");
  if (both && Math.abs(width - aspectRatio * height) >= 1 && Math.abs(height - width / aspectRatio) >= 1)
    throw new RangeError(`width ${width} and height ${height} contradict the aspectRatio ${aspectRatio}`);
  checkContent("keep", options.keep, "[x1, y1, x2, y2] or [x, y]", [2, 4]);
  checkContent("avoid", options.avoid, "[x1, y1, x2, y2]", [4]);
}

/** Width and height from one number for both, or from two; null from what is neither. */
function sizeFrom(value) {
  const size = isNumber(value) ? [value, value] : value;
  return areNumbers(size, 2) && Math.min(...size) >= 1 ? size : null;
}

function checkContent(name, items, form, counts) {
  if (!isGiven(items)) return;
  if (!Array.isArray(items)) throw new TypeError(`${name} must be a list of ${form}, not ${written(items)}`);
  for (const item of items) {
    if (!counts.some((count) => areNumbers(item, count)))
      throw new TypeError(`${name} must be a list of ${form}; ${written(item)} is none`);
    if (item.length === 4) checkBox(item, name);
  }
}

function checkBox(box, name) {
  if (!areNumbers(box, 4)) throw new TypeError(`${name}: expected [x1, y1, x2, y2], not ${written(box)}`);
  if (!(box[0] < box[2] && box[1] < box[3])) throw new RangeError(`${name}: [${box}] needs x1 < x2 and y1 < y2`);
}

// ------------------------------------------------------------------------------------------------------- the search

// As in crop_search.py.
const COSTS = { min_size: 1, min_area: 1, max_area: 1, avoid: 10, keep: 100 };
const SIZES = 3, SMALLEST = 0.65, FITTED = 20, SMALLEST_FITTED = 0.2, STEPS = 12, STEPS_PER_SHAPE = 8, REFINED = 2;
const MOVES = [-0.6, -0.3, 0, 0.3, 0.6], SCALES = [0.93, 0.965, 1.035, 1.07], REFINED_NMS = 0.8;
const REFINED_OF_SET = 8, EDGE_MOVES = 32, FARTHEST_MOVE = 0.1, SLIVER = 0.01;
const VOTE_IOU = 0.7, VOTE_TEMPERATURE = 0.05, SET_VOTE_TEMPERATURE = 0.03;
const SMALL_IN_A_NARROW_SHAPE = 1;
const FREE_RATIOS = [16 / 9, 3 / 2, 4 / 3, 1, 4 / 5, 3 / 4, 2 / 3, 9 / 16];

/** What the crops of one image must satisfy, of the options of `suggest`. */
function constraintsOf(options, [height, width]) {
  let ratio = options.aspectRatio ?? null;
  if (options.width && options.height) ratio = options.width / options.height;
  const shown = [options.width ?? 1, options.height ?? 1], least = sizeFrom(options.minSize) ?? [1, 1];
  const largest = ratio === null ? [width, height] : pixelSizes(ratio, [height, width]).at(-1);
  const met = shown[0] <= largest[0] && shown[1] <= largest[1];
  return {
    ratio,
    minArea: options.minArea ?? 0,
    maxArea: options.maxArea ?? 1,
    minSize: met ? [Math.max(least[0], shown[0]), Math.max(least[1], shown[1])] : least,
    keep: contentBoxes(options.keep ?? [], [height, width], "keep"),
    avoid: contentBoxes(options.avoid ?? [], [height, width], "avoid"),
    unmet: !met,
  };
}

/** Whole-pixel boxes inside the image that cover boxes or points. */
function contentBoxes(items, [height, width], name) {
  const outside = (item) => new RangeError(`${name}: [${item}] lies outside the image (${width} x ${height})`);
  return items.map((item) => {
    let box;
    if (item.length === 2) {
      if (item[0] > width || item[1] > height) throw outside(item);
      const x = Math.min(Math.floor(item[0]), width - 1), y = Math.min(Math.floor(item[1]), height - 1);
      box = [x, y, x + 1, y + 1];
    } else {
      box = [Math.max(Math.floor(item[0]), 0), Math.max(Math.floor(item[1]), 0)];
      box.push(Math.min(Math.ceil(item[2]), width), Math.min(Math.ceil(item[3]), height));
    }
    if (!(box[0] >= 0 && box[1] >= 0 && box[0] < box[2] && box[1] < box[3])) throw outside(item);
    return box;
  });
}

const isFree = (c) =>
  c.ratio === null && c.minArea === 0 && c.maxArea === 1 && c.minSize[0] === 1 && c.minSize[1] === 1 &&
  c.keep.length === 0 && c.avoid.length === 0;

/** By what share a box breaks each constraint, in the order of COSTS. */
function violations(box, c, [height, width]) {
  const size = sizeOf(box), share = areaOf(box) / (height * width), slack = 1e-9;
  return [
    Math.max((c.minSize[0] - size[0]) / c.minSize[0], (c.minSize[1] - size[1]) / c.minSize[1], 0),
    Math.max(c.minArea - share - slack, 0) / Math.max(c.minArea, slack),
    Math.max(share - c.maxArea - slack, 0) / Math.max(c.maxArea, slack),
    sum(c.avoid.map((other) => intersection(box, other) / areaOf(other))),
    sum(c.keep.map((other) => 1 - intersection(box, other) / areaOf(other))),
  ];
}

function costOf(box, c, imageSize) {
  const weights = Object.values(COSTS);
  return sum(violations(box, c, imageSize).map((share, i) => share * weights[i]));
}

const breaksNothing = (shares) => shares.every((share) => share === 0);

/** The maximal boxes inside the image that touch none of the boxes to avoid. */
function freeRegions([height, width], avoid) {
  let regions = [[0, 0, width, height]];
  for (const box of avoid) {
    const parts = regions.filter((region) => intersection(region, box) === 0);
    for (const region of regions.filter((other) => intersection(other, box) > 0)) {
      for (const [edge, value] of [[2, box[0]], [0, box[2]], [3, box[1]], [1, box[3]]]) {
        const part = [...region];
        part[edge] = value;
        if (part[2] > part[0] && part[3] > part[1]) parts.push(part);
      }
    }
    const unique = [...new Map(parts.map((part) => [part.join(), part])).values()];
    unique.sort((a, b) => a[0] - b[0] || a[1] - b[1] || a[2] - b[2] || a[3] - b[3]);
    const holds = (a, b) => a !== b && b[0] >= a[0] && b[1] >= a[1] && b[2] <= a[2] && b[3] <= a[3];
    regions = unique.filter((region) => !unique.some((other) => holds(other, region)));
  }
  return regions;
}

const regionSize = (region) => [region[3] - region[1], region[2] - region[0]];

/** Boxes cut to a region [height, width]; one that lies outside becomes the pixel next to it. */
function clipped(box, [height, width]) {
  const low = [Math.min(Math.max(box[0], 0), width - 1), Math.min(Math.max(box[1], 0), height - 1)];
  return [...low, Math.min(Math.max(box[2], low[0] + 1), width), Math.min(Math.max(box[3], low[1] + 1), height)];
}

function shapesOf(region, c, keep) {
  if (c.ratio !== null) return [c.ratio];
  const [height, width] = regionSize(region), shapes = new Set([width / height, ...FREE_RATIOS]);
  if (keep) shapes.add((keep[2] - keep[0]) / (keep[3] - keep[1]));
  return [...shapes].sort((a, b) => a - b);
}

const sizesInside = (region, shape, imageSize) =>
  pixelSizes(shape, imageSize).filter(([w, h]) => w <= region[2] - region[0] && h <= region[3] - region[1]);

const brokenBounds = (size, c, imageSize) => violations([0, 0, ...size], c, imageSize).slice(0, 3);

function allowedSizes(region, c, imageSize, keep) {
  const [across, down] = keep ? sizeOf(keep) : [0, 0];
  return shapesOf(region, c, keep)
    .map((shape) =>
      sizesInside(region, shape, imageSize).filter(
        (size) => size[0] >= across && size[1] >= down && breaksNothing(brokenBounds(size, c, imageSize)),
      ),
    )
    .filter((sizes) => sizes.length > 0);
}

/** SIZES of the sizes, in even steps from the smallest to the largest. */
function ladder(sizes) {
  const short = sizes.map((size) => Math.min(...size)), first = short[0], last = short.at(-1);
  const wanted = linspace(0, 1, SIZES).map((step) => first * (last / first) ** step);
  const indices = new Set(wanted.map((value) => searchSorted(short, Math.min(value, last))));
  return [...indices].sort((a, b) => a - b).map((i) => sizes[i]);
}

const pixelsOf = (size) => size[0] * size[1];

function candidates(predicted, region, sizes, largest, keep, stride) {
  const corner = region.slice(0, 2), inner = regionSize(region), boxes = [];
  const kept = keep && shift(keep, corner, -1);
  const usable = sizes.filter((size) => pixelsOf(size) >= SMALLEST_FITTED ** 2 * largest);
  if (usable.length) {
    const [across, down] = usable.at(-1);
    const fitted = predicted.map((box) =>
      fitAspectRatio(clipped(shift(box, corner, -1), inner), across / down, inner, usable[0][1], down, kept),
    );
    boxes.push(...roundToSizes(fitted, usable, inner, kept));
  }
  const fair = sizes.filter((size) => pixelsOf(size) >= SMALLEST ** 2 * largest);
  if (fair.length) boxes.push(...candidateGrid(ladder(fair), inner, stride, kept));
  return boxes.map((box) => shift(box, corner));
}

function freeShapes(predicted, region, c, imageSize, keep) {
  const corner = region.slice(0, 2), inner = regionSize(region), kept = keep && shift(keep, corner, -1);
  const starts = predicted.map((box) => clipped(shift(box, corner, -1), inner));
  starts.push([0, 0, inner[1], inner[0]]);
  if (kept) starts.push(kept);
  return starts.map((box) => shift(adjusted(box, c, inner, imageSize, kept), corner));
}

/** A box of any shape, widened to hold what is kept and scaled about its centre to meet the bounds. */
function adjusted(start, c, region, imageSize, keep) {
  const limit = [region[1], region[0]];
  let least = c.minSize.map((side, axis) => Math.min(Math.ceil(side), limit[axis])), box = start;
  if (keep) {
    box = [Math.min(box[0], keep[0]), Math.min(box[1], keep[1]), Math.max(box[2], keep[2]), Math.max(box[3], keep[3])];
    least = least.map((side, axis) => Math.max(side, sizeOf(keep)[axis]));
  }
  const size = sizeOf(box), all = imageSize[0] * imageSize[1], low = c.minArea * all, high = c.maxArea * all;
  const grow = Math.max(Math.sqrt(low / pixelsOf(size)), 1);
  const first = size.map((side, axis) => Math.min(Math.ceil(side * grow), limit[axis]));
  const larger = first.map((side, axis) => Math.min(Math.max(side, Math.ceil(low / first[1 - axis])), limit[axis]));
  const shrink = Math.min(Math.sqrt(high / pixelsOf(larger)), 1);
  const floor = larger.map((side, axis) => Math.max(Math.floor(side * shrink), least[axis]));
  const smaller = floor.map((side, axis) =>
    Math.max(Math.min(side, Math.floor(high / floor[1 - axis])), least[axis]),
  );
  return place(centreOf(box), smaller.map((side, axis) => Math.min(side, limit[axis])), region, keep, true);
}

function satisfying(predicted, all, c, imageSize, keep) {
  let regions = freeRegions(imageSize, c.avoid);
  if (keep) {
    const inside = (r) => r[0] <= keep[0] && r[1] <= keep[1] && r[2] >= keep[2] && r[3] >= keep[3];
    regions = regions.filter(inside);
  }
  const rooms = regions.flatMap((region) => allowedSizes(region, c, imageSize, keep).map((sizes) => [region, sizes]));
  const largest = Math.max(0, ...rooms.map(([, sizes]) => pixelsOf(sizes.at(-1))));
  const stride = Math.max(...imageSize) / (c.ratio !== null ? STEPS : STEPS_PER_SHAPE);
  const pool = rooms.flatMap(([region, sizes]) => candidates(predicted, region, sizes, largest, keep, stride));
  if (c.ratio === null) for (const region of regions) pool.push(...freeShapes(all, region, c, imageSize, keep));
  return distinct(pool, imageSize).filter((box) => breaksNothing(violations(box, c, imageSize)));
}

function relaxedCandidates(region, c, imageSize, keep) {
  const corner = region.slice(0, 2), inner = regionSize(region), boxes = [];
  const kept = keep && clipped(shift(keep, corner, -1), inner);
  for (const shape of shapesOf(region, c, kept)) {
    const sizes = sizesInside(region, shape, imageSize);
    if (sizes.length === 0) continue;
    const largest = pixelsOf(sizes.at(-1));
    const fair = sizes.filter((size) => pixelsOf(size) >= SMALLEST_FITTED ** 2 * largest);
    const broken = sizes.map((size) => sum(brokenBounds(size, c, imageSize)));
    const chosen = [...ladder(fair), sizes[argBest(broken, (a, b) => a < b)]];
    if (kept) {
      const [across, down] = sizeOf(kept), roomy = sizes.find((size) => size[0] >= across && size[1] >= down);
      if (roomy) chosen.push(roomy);
    }
    boxes.push(...candidateGrid(chosen, inner, Math.max(...imageSize) / STEPS, kept));
    if (kept) boxes.push(...chosen.map((size) => place(centreOf(kept), size, inner, kept, true)));
  }
  return boxes.map((box) => shift(box, corner));
}

function relaxed(predicted, c, imageSize, keep) {
  const whole = [0, 0, imageSize[1], imageSize[0]];
  const pool = [whole, ...freeRegions(imageSize, c.avoid)].flatMap((region) =>
    relaxedCandidates(region, c, imageSize, keep),
  );
  if (c.ratio === null) pool.push(...freeShapes(predicted, whole, c, imageSize, keep));
  return distinct(pool, imageSize);
}

/** Boxes between the grid's places and sizes, around the given ones. */
function surroundings(boxes, ratio, imageSize, step, keep) {
  const found = [], sizes = ratio === null ? null : pixelSizes(ratio, imageSize);
  for (const box of boxes) {
    const [x, y] = centreOf(box), [across, down] = sizeOf(box);
    const changes = MOVES.flatMap((right) => MOVES.map((below) => [right, below, 1]));
    for (const [right, below, scale] of [...changes, ...SCALES.map((value) => [0, 0, value])]) {
      const centre = [x + right * step, y + below * step], size = [across * scale, down * scale];
      if (sizes) {
        const [cx, cy] = centre, [w, h] = size;
        found.push(...roundToSizes([[cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]], sizes, imageSize, keep));
      } else {
        const whole = [0, 1].map((axis) => Math.min(Math.max(round(size[axis]), 1), imageSize[1 - axis]));
        found.push(place(centre, whole, imageSize, keep, true));
      }
    }
  }
  return distinct(found, imageSize);
}

function hull(boxes) {
  if (boxes.length === 0) return null;
  const edge = (axis, pick) => pick(...boxes.map((box) => box[axis]));
  return [edge(0, Math.min), edge(1, Math.min), edge(2, Math.max), edge(3, Math.max)];
}

async function search(photo, c) {
  const imageSize = [photo.height, photo.width], keep = hull(c.keep);
  const predicted = rank(await photo.setMerit()).slice(0, FITTED).map((i) => photo.boxes[i]);
  let pool = satisfying(predicted, photo.boxes, c, imageSize, keep);
  if (pool.length === 0) pool = relaxed(photo.boxes, c, imageSize, keep);
  const costs = pool.map((box) => costOf(box, c, imageSize));
  const least = costs.reduce((a, b) => Math.min(a, b), Infinity) * (1 + 1e-9);
  pool = pool.filter((_, i) => costs[i] <= least);
  const largest = pool.map(areaOf).reduce((a, b) => Math.max(a, b));
  const less = (box) => lessForSize(box, photo, c.ratio, largest);
  const merit = (await photo.merit(pool)).map((value, i) => value - less(pool[i]));
  const steps = c.ratio !== null ? STEPS : STEPS_PER_SHAPE;
  const best = nms(pool, merit, REFINED_NMS, REFINED).map((i) => pool[i]);
  const closer = surroundings(best, c.ratio, imageSize, Math.max(...imageSize) / steps, keep).filter(
    (box) => costOf(box, c, imageSize) <= least,
  );
  const closerMerit = (await photo.merit(closer)).map((value, i) => value - less(closer[i]));
  const boxes = [...pool, ...closer], merits = [...merit, ...closerMerit];
  if (!photo.model.scorer) return [boxes, merits];
  const kept = nms(boxes, merits, REFINED_NMS, REFINED).map((i) => boxes[i]);
  const means = voted(kept, boxes, merits, VOTE_TEMPERATURE).map(([mean, best], i) => [
    place(centreOf(mean), sizeOf(kept[i]), imageSize, keep, true),
    best,
  ]);
  const fitting = means.filter(([box]) => costOf(box, c, imageSize) <= least);
  return [[...fitting.map(([box]) => box), ...boxes], [...fitting.map(([, best]) => best), ...merits]];
}

/** By how much less a crop of an aspect ratio is worth for being smaller than the largest, see crop_search.py. */
function lessForSize(box, photo, ratio, largest) {
  if (ratio === null || !photo.model.scorer) return 0;
  return SMALL_IN_A_NARROW_SHAPE * cutOffBy(ratio, photo) * (1 - areaOf(box) / largest);
}

/** Which share of an image even the largest crop of an aspect ratio leaves out. */
function cutOffBy(ratio, { width, height }) {
  return 1 - Math.min((ratio * height) / width, width / (ratio * height));
}

/** For each centre the mean, by merit, of the boxes around it, and the best merit there. */
function voted(centres, boxes, merit, temperature) {
  const overlaps = centres.map((centre) => boxes.map((box) => iou(centre, box)));
  const most = boxes.map((_, i) => overlaps.reduce((largest, row) => Math.max(largest, row[i]), 0));
  return overlaps.map((row, centre) => {
    // For all but the best centre only those vote that are nearest to it.
    const votes = (i) => row[i] >= VOTE_IOU && (centre === 0 || row[i] === most[i]);
    const near = boxes.map((_, i) => i).filter(votes);
    const best = near.reduce((most, i) => Math.max(most, merit[i]), -Infinity);
    const weights = near.map((i) => Math.exp((merit[i] - best) / temperature)), total = sum(weights);
    return [[0, 1, 2, 3].map((edge) => sum(near.map((i, k) => weights[k] * boxes[i][edge])) / total), best];
  });
}

/** Moves of the four edges, in shares of the sides, spread evenly (Halton's sequence). */
function edgeMoves() {
  return Array.from({ length: EDGE_MOVES }, (_, number) =>
    [2, 3, 5, 7].map((base) => {
      let value = 0, scale = 1;
      for (let left = number + 1; left > 0; left = Math.floor(left / base)) value += (scale /= base) * (left % base);
      return (2 * value - 1) * FARTHEST_MOVE;
    }),
  );
}

/** The model's set in whole pixels, its best crops moved to where the ratings around them are highest. */
async function refinedSet(photo) {
  const { boxes, width, height } = photo, merit = await photo.setMerit(), sides = [width, height, width, height];
  const whole = (box) => {
    const low = [clip(round(box[0]), 0, width - 1), clip(round(box[1]), 0, height - 1)];
    const right = Math.min(Math.max(round(box[2]), low[0] + 1), width);
    return [...low, right, Math.min(Math.max(round(box[3]), low[1] + 1), height)];
  };
  if (!photo.model.scorer) return [boxes.map(whole), merit];
  const best = nms(boxes, merit, REFINED_NMS, REFINED_OF_SET), moves = edgeMoves();
  const moved = best
    .flatMap((i) => moves.map((move) => boxes[i].map((edge, k) => clip(edge + move[k] * sides[k], 0, sides[k]))))
    .filter((box) => box[2] - box[0] > 0.1 * width && box[3] - box[1] > 0.1 * height);
  const rated = [...boxes, ...moved], ratings = [...merit, ...(await photo.merit(moved))];
  const centres = nms(rated, ratings, REFINED_NMS, REFINED_OF_SET).map((i) => rated[i]);
  const means = voted(centres, rated, ratings, SET_VOTE_TEMPERATURE), taken = new Set(best);
  const rest = boxes.map((_, i) => i).filter((i) => !taken.has(i));
  // Nobody cuts so little of a side.
  const pulled = (edge, k) => (edge < SLIVER * sides[k] ? 0 : edge > (1 - SLIVER) * sides[k] ? sides[k] : edge);
  return [
    [...means.map(([mean]) => mean.map(pulled)), ...rest.map((i) => boxes[i])].map(whole),
    [...means.map(([, most]) => most), ...rest.map((i) => merit[i])],
  ];
}

// ----------------------------------------------------------------------------------------------------------- pixels

/** Average over blocks of pixels, those at the edges perhaps smaller: Pillow's `reduce`. */
function reduce({ data, width, height, channels }, factor) {
  if (factor === 1) return { data, width, height, channels };
  const across = Math.ceil(width / factor), down = Math.ceil(height / factor);
  const reduced = new Uint8ClampedArray(across * down * 3);
  for (let y = 0; y < down; y++) {
    const y1 = Math.min((y + 1) * factor, height);
    for (let x = 0; x < across; x++) {
      const x1 = Math.min((x + 1) * factor, width);
      let red = 0, green = 0, blue = 0;
      for (let v = y * factor; v < y1; v++) {
        for (let u = x * factor, i = (v * width + u) * channels; u < x1; u++, i += channels) {
          red += data[i];
          green += data[i + 1];
          blue += data[i + 2];
        }
      }
      const count = (y1 - y * factor) * (x1 - x * factor), to = (y * across + x) * 3;
      // Pillow multiplies by a share that is rounded down instead of dividing.
      const share = Math.floor(Math.fround(2 ** 24 / count)) / 2 ** 24, half = count >> 1;
      reduced[to] = Math.floor((red + half) * share);
      reduced[to + 1] = Math.floor((green + half) * share);
      reduced[to + 2] = Math.floor((blue + half) * share);
    }
  }
  return { data: reduced, width: across, height: down, channels: 3 };
}

/**
 * What a JPEG decoder gives at 1/2, 1/4 or 1/8 of the size: of every 8 x 8 block only the coarsest cosines. Python
 * reads large JPEG files so; a browser has decoded them whole.
 */
function decodeReduced({ data, width, height, channels }, step) {
  if (step === 1) return { data, width, height, channels };
  const kept = 8 / step, cosine = (k, u, n) => Math.cos(((2 * k + 1) * u * Math.PI) / (2 * n));
  const weights = Array.from({ length: kept }, (_, n) =>
    Array.from({ length: 8 }, (_, k) => {
      let weight = 1 / 8;
      for (let u = 1; u < kept; u++) weight += (cosine(k, u, 8) * cosine(n, u, kept)) / 4;
      return weight;
    }),
  );
  const across = Math.ceil(width / step), down = Math.ceil(height / step);
  const rows = new Float32Array(across * height * 3), reduced = new Uint8ClampedArray(across * down * 3);
  for (let x = 0; x < across; x++) {
    const first = Math.floor(x / kept) * 8, weight = weights[x % kept];
    for (let y = 0; y < height; y++) {
      let red = 0, green = 0, blue = 0;
      for (let k = 0; k < 8; k++) {
        const i = (y * width + Math.min(first + k, width - 1)) * channels, w = weight[k];
        red += w * data[i];
        green += w * data[i + 1];
        blue += w * data[i + 2];
      }
      rows.set([red, green, blue], (y * across + x) * 3);
    }
  }
  for (let y = 0; y < down; y++) {
    const first = Math.floor(y / kept) * 8, weight = weights[y % kept];
    for (let i = 0; i < across * 3; i++) {
      let value = 0;
      for (let k = 0; k < 8; k++) value += weight[k] * rows[Math.min(first + k, height - 1) * across * 3 + i];
      reduced[y * across * 3 + i] = Math.floor(value + 0.5);
    }
  }
  return { data: reduced, width: across, height: down, channels: 3 };
}

// Pillow's weights are whole numbers of this share of one.
const PRECISION = 2 ** 22;

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
// By Pillow's numbers, the filters that are known here: how many pixels they reach to either side, and their weights.
const FILTERS = {
  1: [3, (x) => (Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0)], // Lanczos
  2: [1, (x) => Math.max(1 - Math.abs(x), 0)], // bilinear
};

/** A filter of Pillow's along one axis: for each output the first input and the weights. */
function filterWeights(from, to, [reach, weightAt]) {
  const scale = from / to, stretch = Math.max(scale, 1), support = reach * stretch;
  return Array.from({ length: to }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(Math.floor(centre - support + 0.5), 0);
    const last = Math.min(Math.floor(centre + support + 0.5), from);
    const weights = Array.from({ length: last - first }, (_, k) => weightAt((k + first - centre + 0.5) / stretch));
    const total = sum(weights);
    return { first, weights: weights.map((weight) => Math.round((weight / total) * PRECISION)) };
  });
}

/** Resize as Pillow does: across, rounded to whole values, then down. */
function resize({ data, width, height, channels }, across, down, filter) {
  const rows = new Float32Array(across * height * 3), result = new Float32Array(across * down * 3);
  const settle = (value) => clip(Math.floor(value / PRECISION), 0, 255);
  filterWeights(width, across, filter).forEach(({ first, weights }, x) => {
    for (let y = 0; y < height; y++) {
      for (let c = 0; c < 3; c++) {
        let value = PRECISION / 2;
        for (let k = 0, i = (y * width + first) * channels + c; k < weights.length; k++, i += channels)
          value += weights[k] * data[i];
        rows[(y * across + x) * 3 + c] = settle(value);
      }
    }
  });
  filterWeights(height, down, filter).forEach(({ first, weights }, y) => {
    for (let i = 0; i < across * 3; i++) {
      let value = PRECISION / 2;
      for (let k = 0; k < weights.length; k++) value += weights[k] * rows[(first + k) * across * 3 + i];
      result[y * across * 3 + i] = settle(value);
    }
  });
  return { data: result, width: across, height: down, channels: 3 };
}

/** By how much a JPEG decoder makes an image smaller that is to keep a short side of so many pixels: as in Pillow. */
function decoderStep(width, height, shortest) {
  const scale = Math.min(1, shortest / Math.min(width, height));
  const room = Math.min(Math.floor(width / Math.ceil(width * scale)), Math.floor(height / Math.ceil(height * scale)));
  return [8, 4, 2].find((step) => step <= room) ?? 1;
}

/** Size and EXIF orientation (1 to 8) of a JPEG file, before it is turned; null for other files. */
export function jpegHeader(bytes) {
  if (bytes[0] !== 0xff || bytes[1] !== 0xd8) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let orientation = 1, at = 2;
  while (at + 9 <= bytes.length && bytes[at] === 0xff) {
    const marker = bytes[at + 1];
    if (marker === 0xff) at += 1; // filling
    else if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker))
      return { height: view.getUint16(at + 5), width: view.getUint16(at + 7), orientation };
    else {
      if (marker === 0xe1 && orientation === 1) orientation = exifOrientation(view, at + 4);
      at += 2 + view.getUint16(at + 2);
    }
  }
  return null;
}

function exifOrientation(view, at) {
  try {
    if (view.getUint32(at) !== 0x45786966) return 1; // "Exif"
    const start = at + 6, little = view.getUint16(start) === 0x4949, first = start + view.getUint32(start + 4, little);
    for (let i = 0; i < view.getUint16(first, little); i++) {
      const entry = first + 2 + 12 * i, value = view.getUint16(entry + 8, little);
      if (view.getUint16(entry, little) === 0x0112) return value >= 1 && value <= 8 ? value : 1;
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // cut off
  }
  return 1;
}

/** An image brought upright from its EXIF orientation. */
function upright({ data, width, height, channels }, orientation) {
  if (orientation === 1) return { data, width, height, channels };
  const swap = orientation >= 5, mirrored = [2, 3, 7, 8].includes(orientation), upsideDown = [3, 4, 6, 7].includes(orientation);
  const across = swap ? height : width, down = swap ? width : height, turned = new data.constructor(across * down * channels);
  for (let y = 0, to = 0; y < down; y++) {
    for (let x = 0; x < across; x++) {
      const u = swap ? y : x, v = swap ? x : y;
      const from = ((upsideDown ? height - 1 - v : v) * width + (mirrored ? width - 1 - u : u)) * channels;
      for (let c = 0; c < channels; c++) turned[to++] = data[from + c];
    }
  }
  return { data: turned, width: across, height: down, channels };
}

/** The network's input: reduced, upright, resized, normalised, channels first. */
function preprocess({ pixels: given, step = 1, orientation = 1 }, settings) {
  const { shortest_edge: shortest, longest_edge: longest } = settings.size;
  let pixels = decodeReduced(given, step);
  pixels = reduce(pixels, Math.max(1, Math.floor(Math.min(pixels.width, pixels.height) / shortest)));
  pixels = upright(pixels, orientation);
  const scale = Math.min(shortest / Math.min(pixels.width, pixels.height), longest / Math.max(pixels.width, pixels.height));
  const divisor = settings.size_divisor ?? 1;
  const side = (length) => Math.max(32, round((length * scale) / divisor) * divisor);
  const across = side(pixels.width), down = side(pixels.height);
  pixels = resize(pixels, across, down, FILTERS[settings.resample ?? 2]);
  const values = new Float32Array(3 * across * down), factor = settings.rescale_factor ?? 1 / 255;
  for (let c = 0; c < 3; c++) {
    const mean = settings.image_mean[c], std = settings.image_std[c];
    for (let i = 0; i < across * down; i++) values[c * across * down + i] = (pixels.data[i * 3 + c] * factor - mean) / std;
  }
  return { values, across, down };
}

/**
 * Decode an image as Python does.
 *
 * Returns its upright width and height, pixels { data, width, height, channels } that may be fewer, the orientation
 * that they have yet to be brought upright from, and by which step they have yet to be reduced as a decoder does.
 */
async function decode(image, shortest, jpeg) {
  if (image?.data && image.width && image.height) {
    const { data, width, height, channels = 4 } = image;
    return { pixels: overWhite(checkPixels({ data, width, height, channels })), width, height };
  }
  checkDrawable(image);
  const file = image instanceof Blob ? image : await fileOf(image);
  const bytes = file && new Uint8Array(await file.arrayBuffer()), header = bytes && jpegHeader(bytes);
  if (header && typeof ImageDecoder !== "undefined") {
    const step = decoderStep(header.width, header.height, shortest), pixels = step > 1 && (await decodeJpeg(bytes, header, step));
    const { width, height, orientation } = header;
    if (pixels) return { pixels, orientation, ...(orientation < 5 ? { width, height } : { width: height, height: width }) };
  }
  const pixels = await drawn(image instanceof Blob ? await createImageBitmap(image, { colorSpaceConversion: "none" }) : image);
  const { width, height } = pixels, coarse = file ? header !== null : jpeg;
  return { pixels, width, height, step: coarse ? decoderStep(width, height, shortest) : 1 };
}

/** Throw where pixels that are decoded already are not as many as they must be. */
function checkPixels(pixels) {
  const { data, width, height, channels } = pixels;
  if (channels !== 3 && channels !== 4)
    throw new RangeError(`channels must be 3 (RGB) or 4 (RGBA), not ${written(channels)}; sharp's toColourspace("srgb") makes 3 of 1`);
  if (data.BYTES_PER_ELEMENT !== 1) throw new TypeError("data must be bytes, such as a Uint8Array");
  if (data.length !== width * height * channels)
    throw new RangeError(`data has ${data.length} bytes, not ${width} x ${height} x ${channels} (width, height, channels)`);
  return pixels;
}

/** Throw where an image is none of the kinds that can be read, here or at all. */
function checkDrawable(image) {
  const pixels = "{ data, width, height, channels }", kinds = "a File or Blob, an image element, a bitmap, a canvas";
  if (typeof image !== "object" || image === null || ArrayBuffer.isView(image) || image instanceof ArrayBuffer)
    throw new TypeError(`an image must be ${kinds}, ImageData or ${pixels}, not ${image?.constructor.name ?? image}`);
  if (typeof OffscreenCanvas === "undefined")
    throw new TypeError(`nothing decodes images here: give ${pixels}, of sharp for example, not ${image.constructor.name}`);
}

function isOpaque(data) {
  for (let i = 3; i < data.length; i += 4) if (data[i] < 255) return false;
  return true;
}

/** Pixels whose transparent parts show white, as in Python. */
function overWhite(pixels) {
  const { data, channels } = pixels;
  if (channels === 3 || isOpaque(data)) return pixels;
  const shown = new Uint8ClampedArray(data.length);
  for (let i = 0; i < data.length; i += 4) {
    const alpha = data[i + 3] / 255;
    for (let c = 0; c < 3; c++) shown[i + c] = data[i + c] * alpha + 255 * (1 - alpha);
  }
  return { ...pixels, data: shown };
}

/** Pixels of a JPEG file, made smaller by the decoder; null where the browser's does not do so. */
async function decodeJpeg(bytes, { width, height }, step) {
  const across = Math.ceil(width / step), down = Math.ceil(height / step);
  const wanted = { desiredWidth: across, desiredHeight: down, colorSpaceConversion: "none" };
  const decoder = new ImageDecoder({ data: bytes, type: "image/jpeg", ...wanted });
  try {
    const { image } = await decoder.decode();
    try {
      if (image.codedWidth !== across || image.codedHeight !== down) return null;
      const data = new Uint8Array(image.allocationSize({ format: "RGBA" }));
      await image.copyTo(data, { format: "RGBA" });
      return { data, width: across, height: down, channels: 4 };
    } finally {
      image.close();
    }
  } catch {
    return null; // the image element may know better
  } finally {
    decoder.close();
  }
}

/** The file that an image element shows, where it can be had without asking another server; else null. */
async function fileOf(image) {
  const address = typeof HTMLImageElement !== "undefined" && image instanceof HTMLImageElement && image.currentSrc;
  if (!address || !(/^(blob|data):/.test(address) || new URL(address).origin === location.origin)) return null;
  const answer = await fetch(address, { cache: "force-cache" }).catch(() => null);
  return answer?.ok ? answer.blob() : null;
}

/** Pixels of a drawable image: an element, a bitmap or a canvas. */
async function drawn(source) {
  const width = source.naturalWidth || source.videoWidth || source.width;
  const height = source.naturalHeight || source.videoHeight || source.height;
  if (!width || !height) throw new TypeError("the image has no pixels; is it loaded?");
  const canvas = new OffscreenCanvas(width, height), context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white"; // what shows through transparent parts
  context.fillRect(0, 0, width, height);
  context.drawImage(source, 0, 0);
  return { data: context.getImageData(0, 0, width, height).data, width, height, channels: 4 };
}

// ------------------------------------------------------------------------------------------------------------ model

/** An image that the network has seen: crops and ratings cost little from here on. */
export class Photo {
  constructor(model, input, source, output, width, height) {
    Object.assign(this, { model, input, source, output, width, height });
    this.seen = { [source]: this }; // the same image by each source of ratings
    const boxes = output.pred_boxes.data, logits = output.logits.data;
    this.boxes = Array.from({ length: logits.length }, (_, i) => {
      const [cx, cy, w, h] = boxes.slice(4 * i, 4 * i + 4);
      const corners = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2];
      return corners.map((edge, k) => clip(edge, 0, 1) * (k % 2 ? height : width));
    });
    this.validity = Array.from(logits, (logit) => 1 / (1 + Math.exp(-logit)));
    const ratings = output.pred_ratings ?? output.pred_scores; // as graphs of before call it
    this.ratings = ratings ? Array.from(ratings.data) : null;
  }

  /** The same image by the source of ratings that a tightness names: "loose", "default" or "tight". */
  async as(tightness) {
    const source = this.model.sourceOf(tightness);
    if (!this.seen[source]) {
      this.seen[source] = await this.model.look(this.input, source, this.width, this.height);
      this.seen[source].seen = this.seen;
    }
    return this.seen[source];
  }

  /** Ratings 1..5 of boxes in pixels; of a model that rates none, the validity of the crop that is most alike. */
  async rate(boxes) {
    if (!Array.isArray(boxes)) throw new TypeError(`rate: expected a list of [x1, y1, x2, y2], not ${written(boxes)}`);
    for (const box of boxes) {
      checkBox(box, "rate");
      if (box[0] < 0 || box[1] < 0 || box[2] > this.width || box[3] > this.height)
        throw new RangeError(`rate: [${box}] reaches outside the image (${this.width} x ${this.height})`);
    }
    const predicted = await this.predicted(boxes);
    return this.model.scorer ? predicted.map((rating) => clip(rating, 1, 5)) : predicted;
  }

  /** What the scoring head predicts, which may pass the ends of the scale: the order of crops stays. */
  async predicted(boxes) {
    if (boxes.length === 0) return [];
    if (!this.model.scorer)
      return boxes.map((box) => Math.max(...this.boxes.map((other, i) => iou(box, other) * this.validity[i])));
    const values = new Float32Array(boxes.length * 4);
    boxes.forEach(([x1, y1, x2, y2], i) => {
      const left = x1 / this.width, top = y1 / this.height, right = x2 / this.width, bottom = y2 / this.height;
      values.set([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], 4 * i);
    });
    return this.model.rate(values, this.output, this.source);
  }

  /** What boxes are ranked by. */
  async merit(boxes) {
    return (await this.predicted(boxes)).map(settled);
  }

  /** What the model's own set is ranked by. */
  async setMerit() {
    if (!this.model.scorer) return this.validity.map(settled);
    return this.ratings ? this.ratings.map(settled) : this.merit(this.boxes);
  }

  /** The probability that people call a crop with such a merit good, of crops of an aspect ratio or of any (null). */
  score(merit, ratio = null) {
    if (!this.model.scorer) return merit;
    const { probability_slope: slope = 4, probability_middle: middle = 4 } = this.model.config;
    const { probability_softening: softening = 0, probability_lowering: lowering = 0 } = this.model.config;
    const cutOff = ratio === null ? 0 : cutOffBy(ratio, this), steep = slope * Math.exp(-softening * cutOff);
    return settled(1 / (1 + Math.exp(-steep * (merit - middle + lowering * cutOff))));
  }

  /**
   * The best crops, best first: [{ score, label, box: { xmin, ymin, xmax, ymax } }, ...].
   *
   * aspectRatio: width over height; width, height: pixels at which the crop will be shown; topK (5; null: all);
   * threshold (0); nmsIou (0.8; null: 1): of crops that overlap by more the better one stays; minArea, maxArea: shares
   * of the image; minSize: [width, height], or one number; keep: boxes or points that must not be cut; avoid: boxes that
   * must stay outside; tightness: "tight" or "loose", as annotators crop who crop tighter or looser, of models that
   * learned of several. Where no crop satisfies everything, `gaveWay` says of each what it breaks, in Python's words:
   * "min_size", "min_area", "max_area", "avoid", "keep". Throws a TypeError or RangeError that names the option.
   */
  async suggest(given = {}) {
    checkOptions(given);
    const { tightness, ...options } = given;
    if (isGiven(tightness)) return (await this.as(tightness)).suggest(options);
    const { topK = 5, threshold = 0, nmsIou = 0.8 } = options;
    const imageSize = [this.height, this.width], constraints = constraintsOf(options, imageSize);
    const ratio = constraints.ratio;
    const [boxes, merit] = isFree(constraints) ? await refinedSet(this) : await search(this, constraints);
    const above = boxes.map((_, i) => i).filter((i) => threshold <= 0 || this.score(merit[i], ratio) > threshold);
    const [overlap, most] = [nmsIou ?? 1, topK ?? Infinity];
    const kept = nms(above.map((i) => boxes[i]), above.map((i) => merit[i]), overlap, most).map((i) => above[i]);
    return kept.map((i) => {
      const [xmin, ymin, xmax, ymax] = boxes[i], shares = violations(boxes[i], constraints, imageSize);
      const gaveWay = Object.keys(COSTS).filter((name, k) => shares[k] > 0 || (name === "min_size" && constraints.unmet));
      const crop = { score: this.score(merit[i], ratio), label: "crop", box: { xmin, ymin, xmax, ymax } };
      return gaveWay.length ? { ...crop, gaveWay } : crop;
    });
  }
}

export class SetCrop {
  /**
   * Load a model.
   *
   * @param {string | URL} model Folder or address with the files named above.
   * @param {object} ort onnxruntime-web; fetched when left out.
   * @param {(path: string) => Promise<ArrayBuffer>} read How a file of the model is read; by default fetched.
   * @throws {Error} A file is missing or broken; the message names it.
   */
  static async load(model = MODEL, ort = null, read = null) {
    const runtime = ort ?? (await import(ORT).catch((error) => {
      throw new Error(`onnxruntime-web cannot be fetched; give one as the second argument (${error.message})`);
    }));
    if (typeof runtime.InferenceSession?.create !== "function")
      throw new TypeError("ort must be onnxruntime-web or onnxruntime-node: it has no InferenceSession");
    if (runtime.env?.wasm) runtime.env.wasm.numThreads = 1; // more need headers that few servers send
    const base = `${model}`.replace(/\/?$/, "/"), get = read ?? ((path) => fetchFile(base + path));
    /** What is made of a file; errors name it. */
    const made = async (path, make) => {
      try {
        return await make(new Uint8Array(await get(path)));
      } catch (error) {
        throw new Error(`${base}${path}: ${error.message}`, { cause: error });
      }
    };
    const json = (path) => made(path, (bytes) => JSON.parse(new TextDecoder().decode(bytes)));
    const [config, settings] = [await json("config.json"), await json("preprocessor_config.json")];
    if (config.model_type !== "setcrop")
      throw new Error(`${base}config.json: model_type is ${written(config.model_type)}, not "setcrop"`);
    const options = { executionProviders: ["cpu"], logSeverityLevel: 3 };
    const session = (path) =>
      made(path, (bytes) => runtime.InferenceSession.create(withoutDefault(bytes, "source"), options));
    const proposer = await session("onnx/model.onnx");
    const scorer = config.crop_scoring ? await session("onnx/scorer.onnx") : null;
    return new SetCrop(runtime, config, settings, proposer, scorer);
  }

  constructor(ort, config, settings, proposer, scorer) {
    Object.assign(this, { ort, config, settings, proposer, scorer });
    const { resample = 2 } = settings;
    if (!(resample in FILTERS)) throw new RangeError(`preprocessor_config.json: resample ${resample} is not known here`);
  }

  /** The choices of tightness that the model has. */
  get tightnesses() {
    return Object.keys(this.config.tightness_sources ?? {});
  }

  /** Whose ratings a tightness asks for, as an index of the model's sources. */
  sourceOf(tightness = "default") {
    const { rating_sources: sources = [], tightness_sources: named } = this.config, wanted = named?.[tightness];
    if (wanted === undefined && tightness !== "default")
      throw new RangeError(`tightness ${tightness} is none of this model's: ${this.tightnesses.join(", ") || "default"}`);
    const index = (sources ?? []).indexOf(wanted);
    return index >= 0 ? index : Number(wanted ?? 0);
  }

  /** What a graph is given to say whose ratings are asked for. */
  asking(session, source) {
    return session.inputNames.includes("source") ? { source: new this.ort.Tensor("int64", [BigInt(source)], []) } : {};
  }

  /**
   * Run the network over an image: a Blob or File, an element, a bitmap, a canvas, ImageData, or { data, width, height }.
   *
   * A file gives Python's crops; what is decoded already may differ a little. jpeg (true): take an image without a file
   * for a decoded JPEG file, which Python reads coarsely where it is large; false: read it as Python reads others.
   * tightness: as of suggest, for all that is asked of the image.
   */
  async read(image, { jpeg = true, tightness } = {}) {
    const decoded = await decode(image, this.settings.size.shortest_edge, jpeg);
    const { values, across, down } = preprocess(decoded, this.settings);
    const input = new this.ort.Tensor("float32", values, [1, 3, down, across]);
    return this.look(input, this.sourceOf(tightness), decoded.width, decoded.height);
  }

  async look(input, source, width, height) {
    const output = await this.proposer.run({ pixel_values: input, ...this.asking(this.proposer, source) });
    return new Photo(this, input, source, output, width, height);
  }

  async rate(values, encoded, source) {
    const found = [], most = 2048 * 4;
    const given = this.scorer.inputNames.filter((name) => name in encoded).map((name) => [name, encoded[name]]);
    for (let start = 0; start < values.length; start += most) {
      const part = values.slice(start, start + most);
      const boxes = new this.ort.Tensor("float32", part, [1, part.length / 4, 4]);
      const asked = this.asking(this.scorer, source);
      const output = await this.scorer.run({ boxes, ...Object.fromEntries(given), ...asked });
      found.push(...(output.ratings ?? output.scores).data); // "scores" in graphs of before
    }
    return found;
  }
}

/**
 * A graph in which an input has to be given that has a default: runtimes in JavaScript take no values for those.
 *
 * The default is the tensor of the input's name (field 8 of ONNX's TensorProto); it gets another name.
 */
function withoutDefault(graph, input) {
  const name = [0x42, input.length, ...new TextEncoder().encode(input)];
  for (let at = graph.indexOf(name[0]); at >= 0; at = graph.indexOf(name[0], at + 1)) {
    if (name.some((byte, i) => graph[at + i] !== byte)) continue;
    const changed = graph.slice();
    changed[at + 2] ^= 0x20; // its first letter in the other case
    return changed;
  }
  return graph;
}

async function fetchFile(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
  return answer.arrayBuffer();
}

// ----------------------------------------------------------------------------------------------------- smartcrop.js

let usual = null;

/** Use this model for `crop` from now on. */
export function use(setcrop) {
  usual = setcrop;
}

/** The model that `crop` uses, loaded once for calls at one time too. */
function usualModel() {
  usual ??= SetCrop.load().catch((error) => {
    usual = null; // the next call tries again
    throw error;
  });
  return usual;
}

/**
 * smartcrop.js's call: the best crop of width : height.
 *
 * width and height, or aspect: the aspect ratio (1:1 without them); minScale (1): least size as a fraction of the largest
 * crop; boost: [{ x, y, width, height, weight }] parts to keep or, with a negative weight, to leave out; tightness: as of
 * suggest. Other options of smartcrop.js, which say how it looks at an image, change nothing.
 */
export async function crop(image, options = {}) {
  const { width, height, aspect, minScale = 1, boost = [], tightness } = options;
  const aspectRatio = aspect || (width && height ? width / height : 1);
  checkOptions({ aspectRatio });
  const photo = await (await usualModel()).read(image, { tightness });
  const largest = pixelSizes(aspectRatio, [photo.height, photo.width]).at(-1);
  const boxesOf = (parts) => parts.map((part) => [part.x, part.y, part.x + part.width, part.y + part.height]);
  const [best] = await photo.suggest({
    aspectRatio,
    minSize: largest.map((side) => Math.max(1, Math.floor(side * minScale))),
    keep: boxesOf(boost.filter((part) => (part.weight ?? 1) > 0)),
    avoid: boxesOf(boost.filter((part) => part.weight < 0)),
    topK: 1,
  });
  const { xmin, ymin, xmax, ymax } = best.box;
  return { topCrop: { x: xmin, y: ymin, width: xmax - xmin, height: ymax - ymin } };
}

export default { crop, use };
