"""Crop images on a Ray cluster, with the same results as `setcrop crop`.

    pip install -c constraints.txt -e ".[ray]"
    python examples/crop_with_ray.py PHOTOS --out CROPS --aspect-ratio 16:9 --workers 4
    python examples/crop_with_ray.py paths.parquet --out CROPS          # a column "path"

The driver lists the images and records what is done; every worker holds one model and writes the crops itself, so
`--out`, and the images, must be reachable under the same paths from all machines. Run again, it goes on where it
stopped. Connects to the cluster of RAY_ADDRESS, or starts one on this machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray

from modeling_setcrop.cli.options import UsageError, load_cropper
from modeling_setcrop.crop_options import CropOptions
from modeling_setcrop.image_reading import ImageFileError
from modeling_setcrop.runs.cropping import SourceReport, crop_sources
from modeling_setcrop.runs.crops import CroppedImage
from modeling_setcrop.runs.identity import FileState
from modeling_setcrop.runs.journal import Journal
from modeling_setcrop.runs.manifest import write_manifest
from modeling_setcrop.runs.naming import CropPlan, default_name
from modeling_setcrop.runs.output import check_output, lock_folder
from modeling_setcrop.runs.sources import Source, list_sources


class CropWorker:
    """Crops batches of images with a model of its own."""

    def __init__(
        self, model: str | None, plan: CropPlan, options: dict[str, Any], overwrite: bool, threads: int
    ) -> None:
        import torch

        torch.set_num_threads(threads)
        self.cropper = load_cropper(model, "cuda" if ray.get_gpu_ids() else "cpu")
        self.plan, self.options, self.overwrite, self.threads = plan, options, overwrite, threads
        self.journal = Journal(plan.out, plan.signature(self.cropper.name, options), read_only=True)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        """Columns `path`, `folder` and `stem` in; the same with `done` (JSON) and `error` out."""
        columns = zip(batch["path"], batch["folder"], batch["stem"], strict=True)
        photos = [Source(Path(path), Path(folder), str(stem)) for path, folder, stem in columns]
        reports = crop_sources(
            self.cropper,
            photos,
            self.plan,
            self.options,
            self.journal,
            overwrite=self.overwrite,
            workers=self.threads,
        )
        done: dict[str, list[str]] = {"path": [], "folder": [], "stem": [], "done": [], "error": []}
        for report in reports:
            done["path"].append(str(report.source.path))
            done["folder"].append(str(report.source.folder))
            done["stem"].append(report.source.stem)
            done["done"].append("" if report.error else json.dumps(_to_json(report)))
            done["error"].append("" if report.error is None else report.error.reason)
        return done


def _to_json(report: SourceReport) -> dict[str, Any]:
    return {"image": report.image.to_dict(), "state": report.state.to_list(), "sizes": list(report.sizes)}


def find_images(sources: list[Path], out: Path, errors: list[ImageFileError]) -> list[Source]:
    """Images of files, folders, and Parquet tables with a column `path`."""
    paths: list[Path] = []
    for source in sources:
        if source.suffix == ".parquet" and source.is_file():
            paths += [Path(row["path"]) for row in ray.data.read_parquet(str(source), columns=["path"]).iter_rows()]
        else:
            paths.append(source)
    return list_sources(paths, errors.append, exclude=out)


def parser_of_options() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=Path, metavar="IMAGE|FOLDER|PARQUET")
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    parser.add_argument("--aspect-ratio", default="", help="one, or several with commas")
    parser.add_argument("--top-k", type=int, default=1, help="crops of each ratio")
    parser.add_argument("--format", help="file format; by default each image's own")
    parser.add_argument("--width", type=int, help="largest width of a written crop in pixels")
    parser.add_argument("--manifest", type=Path, help=".jsonl or .csv file with every crop")
    parser.add_argument("--overwrite", action="store_true", help="redo what is done")
    parser.add_argument("--model", help="checkpoint; by default the one that comes with SetCrop")
    parser.add_argument("--workers", type=int, default=2, help="models at work")
    parser.add_argument("--threads", type=int, default=1, help="processors of each worker")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each worker, perhaps a fraction")
    parser.add_argument("--batch-size", type=int, default=64, help="images handed to a worker at once")
    return parser


def planned(args: argparse.Namespace) -> tuple[CropPlan, dict[str, Any]]:
    """Return what is written where, and the options of the crops.

    Raises:
        ValueError: An option is out of its range, or the images lie in the output folder.
    """
    ratios = [part.strip() for part in args.aspect_ratio.split(",") if part.strip()]
    options = {"top_k": args.top_k, "aspect_ratio": ratios[0] if len(ratios) == 1 else ratios, "width": args.width}
    options = {name: value for name, value in options.items() if value not in (None, [])}
    CropOptions(**options)
    check_output(args.out, [source for source in args.sources if source.suffix != ".parquet"])
    the_ratio = ratios[0] if len(ratios) == 1 else None
    # Workers may run in another folder than the driver.
    out = args.out.resolve()
    return CropPlan(out, default_name(args.top_k, ratios), args.format, width=args.width, ratio=the_ratio), options


def crop_on_cluster(
    args: argparse.Namespace, model: str | None, plan: CropPlan, options: dict[str, Any], todo: list[Source]
) -> Iterator[dict[str, Any]]:
    """Yield the workers' report of every image, as they come."""
    items = [{"path": str(source.path), "folder": str(source.folder), "stem": source.stem} for source in todo]
    # Blocks no larger than a batch, so that all workers have work.
    blocks = max(args.workers, -(-len(items) // args.batch_size))
    reports = ray.data.from_items(items, override_num_blocks=min(blocks, len(items))).map_batches(
        CropWorker,
        fn_constructor_args=(model, plan, options, args.overwrite, args.threads),
        batch_size=args.batch_size,
        compute=ray.data.ActorPoolStrategy(size=args.workers),
        num_cpus=args.threads,
        num_gpus=args.gpus,
    )
    yield from reports.iter_rows()


def record(report: dict[str, Any], journal: Journal) -> int:
    """Note a worker's report of an image in the journal, and return how many crops it has.

    Raises:
        ImageFileError: The image failed.
    """
    source = Source(Path(report["path"]), Path(report["folder"]), report["stem"])
    if report["error"]:
        raise ImageFileError(source.path, report["error"])
    done = json.loads(report["done"])
    image = CroppedImage.from_dict(done["image"])
    journal.add(source, image, FileState.from_list(done["state"]), done["sizes"])
    return len(image.crops)


def main(arguments: list[str] | None = None) -> int:
    """Run, and return the exit status: 1 when an image failed, 2 when an option is wrong."""
    parser = parser_of_options()
    args = parser.parse_args(arguments)
    errors: list[ImageFileError] = []
    try:
        plan, options = planned(args)
        sources = find_images([source.resolve() for source in args.sources], plan.out, errors)
        model = str(Path(args.model).resolve()) if args.model and Path(args.model).is_dir() else args.model
        name = load_cropper(model, "cpu").name
    except (UsageError, ValueError) as error:
        parser.error(str(error))
    out = plan.out
    # The workers write; the driver keeps every other run away from the folder.
    with lock_folder(out):
        journal = Journal(out, plan.signature(name, options))
        todo = [source for source in sources if args.overwrite or not journal.is_done(source)]
        crops = 0
        for report in crop_on_cluster(args, model, plan, options, todo) if todo else ():
            try:
                crops += record(report, journal)
            except ImageFileError as error:
                errors.append(error)
    for error in errors:
        print(error, file=sys.stderr)
    if args.manifest is not None:
        failed = {error.path for error in errors}
        write_manifest(args.manifest, journal.rows(s for s in sources if s.path not in failed), errors)
    print(
        f"{crops} crops of {len(todo)} images went to {args.out}; "
        f"{len(sources) - len(todo)} were done before, {len(errors)} failed"
    )
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
