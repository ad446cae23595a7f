"""Run the README's first Python example on images: `readme_example.py README.md PHOTOS`."""

import re
import shutil
import sys
from pathlib import Path

readme, photos = Path(sys.argv[1]), sorted(Path(sys.argv[2]).glob("*.jpg"))
shutil.copyfile(photos[0], "photo.jpg")
(example, *_) = re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), flags=re.DOTALL)
names = {"list_of_photos": [str(photo) for photo in photos[:2]]}
exec(compile(example, str(readme), "exec"), names)
crops = names["cropper"]("photo.jpg", top_k=3)
assert len(crops) == 3 and crops[0]["label"] == "crop", crops
where = Path(names["modeling_setcrop"].__file__)
assert "site-packages" in where.parts, f"{where}: not the installed package"
print(f"The README's example works with {where.parent}")
