"""Many photographs through one model: read, judged in batches of one shape and written in threads, resumable.

Memory does not grow with the number of photographs: a bounded window of them is in flight, and very large ones wait
for each other (`PixelBudget`).
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import string
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .imaging import CropFile, PictureError, atomic_writer, find_pictures, open_picture, output_suffix, write_crops
from .picture_reading import Picture, read_picture

if TYPE_CHECKING:
    from .pipeline_image_cropping import ImageCroppingPipeline

JOURNAL = ".setcrop.jsonl"
"""What has been done in an output folder: a line a photograph, with the manifest's rows."""

_MANIFEST_FIELDS = (
    "source", "file", "rank", "score", "xmin", "ymin", "xmax", "ymax", "width", "height", "aspect_ratio", "gave_way",
    "picture_width", "picture_height", "keep_original", "improves", "focus_x", "focus_y", "error",
)  # fmt: skip
_TEMPLATE_FIELDS = frozenset({"stem", "rank", "ratio", "width", "height", "score"})


@dataclass(frozen=True)
class Photo:
    """A photograph to be cropped.

    Attributes:
        path: The file.
        folder: Where it lies below the folder that was searched; crops go to the same place below the output folder.
        stem: What its crops are named after: the file's stem, with the suffix where two photographs share the stem.
    """

    path: Path
    folder: Path
    stem: str


@dataclass(frozen=True)
class Suggestion:
    """What the model says of one photograph, or why it could not be read.

    Attributes:
        photo: The photograph.
        picture: Its reduced copy and its size; None with an error.
        result: The pipeline's answer with `details=True`; empty with an error.
        error: Why there is no answer.
    """

    photo: Photo
    picture: Picture | None
    result: dict[str, Any]
    error: PictureError | None = None


@dataclass(frozen=True)
class PhotoReport:
    """What was done with one photograph: rows of the manifest, and errors."""

    photo: Photo
    rows: list[dict[str, Any]]
    error: PictureError | None = None
    skipped: bool = False


class PixelBudget:
    """Lets threads hold decoded pictures of so many pixels in all; a larger one waits until it is alone."""

    def __init__(self, pixels: int = 250_000_000) -> None:
        self.pixels = self._free = pixels
        self._changed = threading.Condition()

    @contextmanager
    def __call__(self, pixels: int) -> Iterator[None]:
        pixels = min(pixels, self.pixels)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()


def list_photos(
    paths: Iterable[str | os.PathLike[str]],
    on_error: Callable[[PictureError], None],
    exclude: Path | None = None,
) -> list[Photo]:
    """Photographs under files and folders, in order.

    Args:
        paths: Files, and folders searched recursively.
        on_error: Told of paths without photographs, and of photographs whose crops would overwrite another's.
        exclude: A folder that is not searched: the output's.
    """
    excluded = None if exclude is None else exclude.resolve()
    found = [
        (path, relative)
        for path, relative in find_pictures(paths, on_error)
        if excluded is None or excluded not in path.resolve().parents
    ]
    shared = Counter((relative.parent, relative.stem) for _, relative in found)
    photos: dict[tuple[Path, str], Photo] = {}
    for path, relative in found:
        stem = relative.stem
        if shared[relative.parent, stem] > 1:
            stem = f"{stem}_{relative.suffix[1:]}"
        key = (relative.parent, stem)
        if key in photos:
            on_error(PictureError(path, f"its crops would have the names of those of {photos[key].path}"))
        else:
            photos[key] = Photo(path, relative.parent, stem)
    return list(photos.values())


def suggest_photos(
    cropper: ImageCroppingPipeline,
    photos: Iterable[Photo],
    options: dict[str, Any],
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    budget: PixelBudget | None = None,
) -> Iterator[Suggestion]:
    """Suggest crops in threads that read and judge; photographs come back when they are done, not in order.

    Args:
        cropper: The "image-cropping" pipeline.
        photos: Photographs, taken only as fast as they are needed.
        options: Of the pipeline's call, without `details` and `batch_size`.
        batch_size: Photographs of one shape in one forward pass; by default 8 on an accelerator and 1 on the CPU,
            where more gain little speed and cost memory.
        workers: Threads; by default as many as there are processors.
        budget: Bounds the pixels decoded at once.
    """
    import torch

    workers = workers or os.cpu_count() or 1
    batch_size = batch_size or (1 if cropper.device.type == "cpu" else 8)
    budget = budget or PixelBudget()
    # Enough for every thread to have a batch while the next ones are being read.
    window = 2 * (workers + 1) * batch_size
    source = enumerate(photos)
    # Threads that each work on photographs of their own fill all processors. If every operation were spread over the
    # processors too, its parts would wait for one another behind the other threads' work.
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, "suggest", torch.set_num_threads, (1,))
    reading: deque[tuple[int, Photo, Future[_Decoded]]] = deque()
    # Photographs that wait for others of their shape; the number says how long.
    groups: dict[tuple[int, ...], list[tuple[int, Photo, _Decoded]]] = {}
    judging: dict[Future[list[Suggestion]], int] = {}

    def waiting() -> int:
        return sum(map(len, groups.values()))

    def refill() -> None:
        room = window - len(reading) - waiting() - sum(judging.values())
        for number, photo in itertools.islice(source, max(room, 0)):
            reading.append((number, photo, pool.submit(_read, cropper, photo, budget)))

    try:
        refill()
        while reading or groups or judging:
            if reading:
                number, photo, future = reading.popleft()
                try:
                    decoded = future.result()
                except PictureError as error:
                    yield Suggestion(photo, None, {}, error)
                except (ValueError, RuntimeError) as error:
                    # One odd photograph must not end the run.
                    yield Suggestion(photo, None, {}, PictureError(photo.path, " ".join(str(error).split())))
                else:
                    groups.setdefault(tuple(decoded[1]["pictures"][0].shape), []).append((number, photo, decoded))
            ready = next((shape for shape, members in groups.items() if len(members) >= batch_size), None)
            # Two batches' worth may wait for company; the rest of the window keeps the threads busy.
            if ready is None and groups and (not reading or waiting() > 2 * batch_size):
                ready = min(groups, key=lambda shape: groups[shape][0][0])
            if ready is not None:
                members = [(photo, decoded) for _, photo, decoded in groups.pop(ready)]
                judging[pool.submit(_suggest_batch, cropper, members, options)] = len(members)
            if judging and not reading:
                wait(judging, return_when=FIRST_COMPLETED)
            for batch in [batch for batch in judging if batch.done()]:
                del judging[batch]
                yield from batch.result()
            refill()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)


def in_order(suggestions: Iterable[Suggestion], photos: Iterable[Photo]) -> Iterator[Suggestion]:
    """Suggestions in the order of their photographs, each as soon as those before it are there."""
    arrived: dict[Photo, Suggestion] = {}
    expected = iter(photos)
    photo = next(expected, None)
    for suggestion in suggestions:
        arrived[suggestion.photo] = suggestion
        while photo in arrived:
            yield arrived.pop(photo)
            photo = next(expected, None)


_Decoded = tuple[Picture, dict[str, Any]]


def _read(cropper: ImageCroppingPipeline, photo: Photo, budget: PixelBudget) -> _Decoded:
    with open_picture(photo.path) as image, budget(image.width * image.height):
        picture = read_picture(image, cropper.short_side)
    return picture, cropper.preprocess(picture)


def _suggest_batch(
    cropper: ImageCroppingPipeline, members: list[tuple[Photo, _Decoded]], options: dict[str, Any]
) -> list[Suggestion]:
    import torch

    inputs = [inputs for _, (_, inputs) in members]
    outputs = cropper.forward(
        {
            "pictures": [pixels for item in inputs for pixels in item["pictures"]],
            "target_size": torch.cat([item["target_size"] for item in inputs]),
        }
    )
    suggestions = []
    for index, (photo, (picture, _)) in enumerate(members):
        one = {name: value[index : index + 1] for name, value in outputs.items()}
        try:
            suggestions.append(Suggestion(photo, picture, cropper.postprocess(one, details=True, **options)))
        except ValueError as error:
            # A constraint that cannot hold for this picture: a box outside it, or `strict`.
            suggestions.append(Suggestion(photo, picture, {}, PictureError(photo.path, str(error))))
    return suggestions


@dataclass(frozen=True)
class CropPlan:
    """How crops are named and written.

    Attributes:
        out: The output folder, which mirrors the folders that were searched.
        name: Template of file names, without suffix: {stem}, {rank}, {ratio}, {width}, {height}, {score}.
        format: File format, or None for each photograph's own.
        quality: 1..100, for JPEG, WebP and AVIF.
        width, height: Pixels to which crops are brought down; smaller crops stay as they are.

    Raises:
        ValueError: The template names an unknown field, or the format is unknown.
    """

    out: Path
    name: str
    format: str | None = None
    quality: int = 92
    width: int | None = None
    height: int | None = None

    def __post_init__(self) -> None:
        try:
            fields = {field for _, field, _, _ in string.Formatter().parse(self.name) if field is not None}
            self.name.format(stem="", rank=1, ratio="", width=1, height=1, score=1)
        except (ValueError, KeyError, IndexError, AttributeError) as error:
            raise ValueError(f"name template {self.name!r}: {error}") from None
        if not fields <= _TEMPLATE_FIELDS:
            raise ValueError(f"name template {self.name!r}: use only {', '.join(sorted(_TEMPLATE_FIELDS))}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality lies in 1..100, not {self.quality}")
        if self.format is not None:
            output_suffix("", self.format)

    def signature(self, model: str, options: dict[str, Any]) -> dict[str, Any]:
        """All that decides what the crops look like: a change of it makes an earlier run's crops out of date."""
        return options | {"model": model, "name": self.name, "format": self.format, "quality": self.quality}

    def rows(self, suggestion: Suggestion) -> list[dict[str, Any]]:
        """The manifest's rows for a photograph's crops, with the files they go to.

        Raises:
            PictureError: Two crops would have the same name.
        """
        photo, result, picture = suggestion.photo, suggestion.result, suggestion.picture
        suffix = output_suffix(photo.path, self.format)
        ranks: Counter[str] = Counter()
        rows = []
        for crop in result["crops"]:
            box, ratio = crop["box"], str(crop.get("aspect_ratio", ""))
            ranks[ratio] += 1
            width, height = self.final_size(box)
            name = self.name.format(
                stem=photo.stem,
                rank=ranks[ratio],
                ratio=ratio.replace(":", "x").replace("/", "x"),
                width=width,
                height=height,
                score=round(100 * crop["score"]),
            )
            rows.append(
                {
                    "source": photo.path.as_posix(),
                    "file": (photo.folder / (name + suffix)).as_posix(),
                    "rank": ranks[ratio],
                    "score": round(crop["score"], 5),
                    **box,
                    "width": width,
                    "height": height,
                    "aspect_ratio": ratio or None,
                    "gave_way": crop.get("gave_way", []),
                    "picture_width": picture.size[1],
                    "picture_height": picture.size[0],
                    "keep_original": round(result["keep_original"], 5),
                    "improves": round(result["improves"], 5),
                    "focus_x": round(result["focus_point"]["x"], 5),
                    "focus_y": round(result["focus_point"]["y"], 5),
                }
            )
        names = Counter(row["file"] for row in rows)
        for name, count in names.items():
            if count > 1:
                raise PictureError(photo.path, f"{count} crops would be named {name}: use {{rank}} in the template")
            target = Path(os.path.normpath(self.out / name))
            if Path(os.path.normpath(self.out)) not in target.parents:
                raise PictureError(photo.path, f"a crop would be written outside {self.out}: {name}")
            if target.exists() and target.samefile(photo.path):
                raise PictureError(photo.path, "its crop would overwrite the photograph itself")
        return rows

    def final_size(self, box: dict[str, int]) -> tuple[int, int]:
        """Width and height in pixels at which a crop is written."""
        width, height = box["xmax"] - box["xmin"], box["ymax"] - box["ymin"]
        if self.width is not None and self.height is not None:
            return (self.width, self.height) if width >= self.width and height >= self.height else (width, height)
        if self.width is not None and width > self.width:
            return self.width, max(1, round(height * self.width / width))
        if self.height is not None and height > self.height:
            return max(1, round(width * self.height / height)), self.height
        return width, height


class Journal:
    """The record of an output folder: which photographs are done, with which options, and their manifest rows.

    A photograph counts as done when its file has not changed, the options are the same and its crops are there.

    Args:
        folder: The output folder.
        options: What the crops are made with (`CropPlan.signature`).
        read_only: Record nothing, for workers whose driver does that.
    """

    def __init__(self, folder: Path, options: dict[str, Any], read_only: bool = False) -> None:
        self.path = folder / JOURNAL
        self.options = json.dumps(options, sort_keys=True)
        self.read_only = read_only
        self._offsets: dict[str, int] = {}
        self._writers: dict[str, str] = {}
        if self.path.exists():
            for offset, entry in self._entries():
                self._offsets[entry["source"]] = offset
                self._writers.update((row["file"], entry["source"]) for row in entry["rows"])

    def _entries(self) -> Iterator[tuple[int, dict[str, Any]]]:
        offset = 0
        with self.path.open("rb") as file:
            for line in file:
                # What a killed run was writing is no whole line.
                with suppress(ValueError):
                    yield offset, json.loads(line)
                offset += len(line)

    def is_done(self, photo: Photo) -> bool:
        """Whether the photograph's crops, made with these options, are there."""
        offset = self._offsets.get(photo.path.as_posix())
        if offset is None:
            return False
        with self.path.open("rb") as file:
            file.seek(offset)
            entry = json.loads(file.readline())
        return (
            entry["options"] == self.options
            and entry["state"] == _file_state(photo.path)
            and all((self.path.parent / row["file"]).exists() for row in entry["rows"])
        )

    def writer(self, file: str) -> str | None:
        """The photograph whose crop a file, relative to the output folder, is; None for files of no recorded run."""
        return self._writers.get(file)

    def begin(self, photo: Photo, rows: list[dict[str, Any]]) -> None:
        """Record which files are about to be written, so that a run after a killed one knows them for its own."""
        self._append(photo, rows, None)

    def add(self, photo: Photo, rows: list[dict[str, Any]]) -> None:
        """Record a photograph whose crops are all written."""
        self._append(photo, rows, _file_state(photo.path))

    def _append(self, photo: Photo, rows: list[dict[str, Any]], state: list[int] | None) -> None:
        if self.read_only:
            return
        entry = {"source": photo.path.as_posix(), "state": state, "options": self.options, "rows": rows}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            # A run that was killed may have left half a line.
            if file.tell() > 0 and not self._ends_a_line():
                file.write(b"\n")
            offset = file.tell()
            file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
        self._offsets[entry["source"]] = offset
        self._writers.update((row["file"], entry["source"]) for row in rows)

    def _ends_a_line(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    def rows(self, photos: Iterable[Photo]) -> Iterator[dict[str, Any]]:
        """The manifest rows of those photographs that are done, in order."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for photo in photos:
                offset = self._offsets.get(photo.path.as_posix())
                if offset is not None:
                    file.seek(offset)
                    entry = json.loads(file.readline())
                    if entry["state"] is not None:
                        yield from entry["rows"]


def _file_state(path: Path) -> list[int]:
    state = path.stat()
    return [state.st_size, state.st_mtime_ns]


def crop_photos(
    cropper: ImageCroppingPipeline,
    photos: Sequence[Photo],
    plan: CropPlan,
    options: dict[str, Any],
    journal: Journal,
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    batch_size: int | None = None,
    workers: int | None = None,
) -> Iterator[PhotoReport]:
    """Crop photographs into an output folder; each is reported when it is done.

    Photographs that an earlier run has done with the same options are skipped. When the caller stops early, crops that
    are being written are finished and recorded, so the next run goes on from there.

    Args:
        cropper: The "image-cropping" pipeline.
        photos: As `list_photos` gives them.
        plan: Names and formats.
        options: Of the pipeline's call.
        journal: The output folder's record.
        overwrite: Do everything again, and replace files that no earlier run has written.
        dry_run: Write nothing.
        batch_size: Photographs of one shape in one forward pass; by default 8 on an accelerator and 1 on the CPU,
            where more gain little speed and cost memory.
        workers: Threads for reading and judging, and again for writing; by default as many as there are processors.
    """
    workers = workers or os.cpu_count() or 1
    budget = PixelBudget()
    todo = []
    for photo in photos:
        if not overwrite and not dry_run and journal.is_done(photo):
            yield PhotoReport(photo, [], skipped=True)
        else:
            todo.append(photo)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="write")
    writing: dict[Future[None], tuple[Photo, list[dict[str, Any]]]] = {}

    def finished(futures: Iterable[Future[None]]) -> Iterator[PhotoReport]:
        for future in futures:
            photo, rows = writing.pop(future)
            try:
                future.result()
            except PictureError as error:
                yield PhotoReport(photo, [], error)
            else:
                journal.add(photo, rows)
                yield PhotoReport(photo, rows)

    try:
        for suggestion in suggest_photos(
            cropper, todo, options, batch_size=batch_size, workers=workers, budget=budget
        ):
            photo = suggestion.photo
            try:
                if suggestion.error is not None:
                    raise suggestion.error
                rows = plan.rows(suggestion)
                if not overwrite:
                    _refuse_to_overwrite(photo, rows, plan, journal)
            except PictureError as error:
                yield PhotoReport(photo, [], error)
                continue
            if dry_run:
                yield PhotoReport(photo, rows)
                continue
            journal.begin(photo, rows)
            writing[pool.submit(_write, photo, rows, plan, budget)] = (photo, rows)
            if len(writing) > 2 * workers:
                wait(writing, return_when=FIRST_COMPLETED)
            yield from finished([future for future in writing if future.done()])
        while writing:
            done, _ = wait(writing, return_when=FIRST_COMPLETED)
            yield from finished(done)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for _ in finished([future for future in writing if future.done() and not future.cancelled()]):
            pass


def _refuse_to_overwrite(photo: Photo, rows: list[dict[str, Any]], plan: CropPlan, journal: Journal) -> None:
    """Only files that an earlier run made of the same photograph are replaced unasked."""
    for row in rows:
        target = plan.out / row["file"]
        if target.exists() and journal.writer(row["file"]) != row["source"]:
            raise PictureError(photo.path, f"{target} exists and is not a crop of it (--overwrite replaces it)")


def _write(photo: Photo, rows: list[dict[str, Any]], plan: CropPlan, budget: PixelBudget) -> None:
    crops = []
    for row in rows:
        box = (row["xmin"], row["ymin"], row["xmax"], row["ymax"])
        size = (row["width"], row["height"])
        unchanged = size == (box[2] - box[0], box[3] - box[1])
        crops.append(CropFile(box, plan.out / row["file"], None if unchanged else size))
    if rows:
        with budget(rows[0]["picture_width"] * rows[0]["picture_height"]):
            write_crops(photo.path, crops, plan.quality)


def write_manifest(path: Path, rows: Iterable[dict[str, Any]], errors: Iterable[PictureError]) -> None:
    """Write one row a crop, and one a photograph that failed, as JSON lines or (`.csv`) a table.

    Raises:
        ValueError: The suffix is neither .jsonl nor .csv.
        PictureError: The file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in (".jsonl", ".csv"):
        raise ValueError(f"manifest {path}: use .jsonl or .csv")
    failed = ({"source": error.path.as_posix(), "error": error.reason} for error in errors)
    with atomic_writer(path) as binary:
        if suffix == ".jsonl":
            for part in (rows, failed):
                for row in part:
                    binary.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            return
        lines = _Utf8Lines(binary.write)
        table = csv.DictWriter(lines, _MANIFEST_FIELDS)
        table.writeheader()
        for part in (rows, failed):
            for row in part:
                table.writerow(row | {"gave_way": " ".join(row.get("gave_way", []))})


class _Utf8Lines:
    """The text file that `csv` wants, over a binary one."""

    def __init__(self, write: Callable[[bytes], Any]) -> None:
        self._write = write

    def write(self, text: str) -> None:
        self._write(text.encode())
