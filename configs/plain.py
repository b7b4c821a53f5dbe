"""CLIP in three forms, on which the recipes of other objectives stand: what they change is then compared with this.

    jclip train configs/plain.py --workdir runs/plain
    jclip train configs/plain.py --form clipart --data data/clipart --workdir runs/plain_clipart

shapes is configs/quickstart.py, clipart configs/clipart.py on the folder of shards `data`, and large configs/vit_b16.py on a
pattern of WebDataset shards.
"""

from typing import Literal

from jclip.config import Config, ConfigError, beside


def get_config(form: Literal["shapes", "clipart", "large"] = "shapes", data: str = "") -> Config:
    """The recipe of a form, on its data."""
    match form:
        case "clipart":
            return beside(__file__, "clipart.py", root=data)
        case "large":
            return beside(__file__, "vit_b16.py", data=data)
    if data:
        raise ConfigError(f"config: shapes are drawn while training, so that data {data!r} would not be read; give another form")
    return beside(__file__, "quickstart.py")
