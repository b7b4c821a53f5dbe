"""Writes golden/coca.json: what open_clip makes of a tiny CoCa. PYTHONPATH=.. python make_golden_coca.py"""

import json

import numpy as np
from coca_tiny import START, config, inputs, numbers
from foreign import GOLDEN
from peers import peer

open_clip, torch = peer("open_clip"), peer("torch")

made = config()
model = open_clip.coca_model.CoCa(**{key: value for key, value in made.items() if key != "custom_text"}).eval()
shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
model.load_state_dict({key: torch.from_numpy(np.asarray(value)) for key, value in numbers(shapes).items()})
pixels, ids = inputs()
found = {}
with torch.no_grad():
    image = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
    out = model(image, torch.from_numpy(ids).long(), output_labels=False)
    told = torch.full((3, 1), START)
    for _ in range(8):
        latent, tokens = model._encode_image(image)
        logits = model(None, told, latent, tokens, output_labels=False)["logits"][:, -1]
        told = torch.cat([told, logits.argmax(dim=1, keepdim=True)], dim=1)
    found = {"image": out["image_features"], "text": out["text_features"], "logits": out["logits"][:, :, ::4999]}
    found = {key: np.round(value.numpy().astype(float), 7).tolist() for key, value in found.items()}
found |= {"captions": told.tolist(), "shapes": shapes}
(GOLDEN / "coca.json").write_text(json.dumps(found) + "\n")
