"""Trains the recipe of a small data set with other objectives, at equal steps and at equal seconds, and prints how they compare.

    python tools/compare_objectives.py shapes results.jsonl
    python tools/compare_objectives.py clipart results.jsonl --data data/clipart --only superclip ema
    python tools/compare_objectives.py clipart results.jsonl --table

Each variant is configs/plain.py with something changed, or a recipe of configs/. It is trained with each seed for as many steps
as the plain recipe, and then for as many as take the same seconds: processor seconds of a step of training, loader included,
which other work on the machine changes least. A line of the file is one run; what the file has is not run again, so that it
can be stopped at any time and a further call goes on. tools/measured/ has the runs of the tables of docs/objectives.md.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from jclip.config import (
    BYOL,
    CLOOB,
    Augment,
    Config,
    Contrastive,
    MaskedText,
    MultiView,
    NearestNeighbour,
    SelfDistillation,
    SimReg,
    SimSiam,
    Stage,
    TextAugment,
    TokenWise,
    Triplet,
    View,
    load,
    replace,
    replace_each,
)

CONFIGS = Path(__file__).parent.parent / "configs"
STRONG = Augment(scale=(0.2, 1.0), flip=0.5, jitter_p=0.8, grayscale=0.2, blur=0.5)
TWO_IMAGES = {"image@2": View("image", augment=STRONG)}
SMALL_HEADS: dict[str, Any] = {"prototypes": 512, "size": 256, "features": 64}
WORDS = TextAugment(swap=0.1, drop=0.1)

SAME = 0.03
"""Steps whose seconds differ by less are counted as equally long."""
STEPS = {"shapes": 300, "clipart": 630}
"""Steps of the plain recipe."""
METRICS = {
    "shapes": {"seen/top1": "seen", "heldout/top1": "held out", "probe/top1": "linear probe"},
    "clipart": {
        "clipart/retrieval/image_to_text/recall@10": "image to text",
        "clipart/retrieval/text_to_image/recall@10": "text to image",
        "clipart/retrieval/mean/recall@10": "mean",
    },
}


def beside(family: object, views: Mapping[str, View] | None = None) -> Callable[[Config], Config]:
    """A further objective beside the contrastive one."""
    return lambda plain: replace_each(plain, {"views": dict(views or {}), "objectives": {**plain.objectives, "further": family}})


def instead(family: object, views: Mapping[str, View] | None = None) -> Callable[[Config], Config]:
    """Another objective in place of the contrastive one."""
    return lambda plain: replace_each(plain, {"views": dict(views or {}), "objectives": {"image_text": family}})


def changed(path: str, value: object) -> Callable[[Config], Config]:
    """One field changed."""
    return lambda plain: replace(plain, path, value)


def both_directions(plain: Config) -> Config:
    """A text tower that is not causal, without which no word is predicted from later ones. That of shapes never is."""
    return replace_each(plain, {"model.towers.text.causal": False, "model.towers.text.mask_padding": True})


CHANGES: dict[str, Callable[[Config], Config]] = {
    "sigmoid": instead(Contrastive(loss="sigmoid")),
    "sigmoid, bias of the batch": instead(Contrastive(loss="sigmoid", logit_bias="batch")),
    "decoupled": instead(Contrastive(decoupled=True)),
    "extra projections": instead(Contrastive(extra_projections=True)),
    "equal texts positive": instead(Contrastive(equal="positive")),
    "label smoothing": instead(Contrastive(label_smoothing=0.1)),
    "FILIP beside": beside(TokenWise()),
    "CLOOB": instead(CLOOB()),
    "triplet beside": beside(Triplet()),
    "triplet, semi-hard, beside": beside(Triplet(mining="semi_hard")),
    "triplet, all, beside": beside(Triplet(mining="all", weight=1 / 127)),
    "neighbours beside": beside(NearestNeighbour(size=8192, weight=0.2)),
    "sim_reg beside": beside(SimReg()),
    "two images": instead(MultiView(("image", "image@2"), ("text",)), TWO_IMAGES),
    "SimSiam beside": beside(SimSiam("image", "image@2", hidden=64, features=256, weight=0.2), TWO_IMAGES),
    "BYOL beside": beside(BYOL("image", "image@2", hidden=256, features=64, weight=0.2), TWO_IMAGES),
    "self-distillation beside": beside(SelfDistillation(parts=("image@2",), **SMALL_HEADS), TWO_IMAGES),
    "text in both directions": both_directions,
    "text in both directions, masked words beside": lambda plain: beside(MaskedText(weight=0.2))(both_directions(plain)),
    "words swapped and dropped": changed("data.text_augment", WORDS),
    "moving average": lambda plain: replace_each(plain, {"optim.ema": 0.98, "evaluate_ema": True}),
}
BY_RULES = "text*2 | a picture of {json.keywords} | {json.title}"
"""The caption of clip art half of the time, otherwise one of two made by a rule: from one of its keywords, or its title."""
WITH_FIELDS: dict[str, Callable[[Config], Config]] = {"captions by rules": changed("data.fields", {"text": BY_RULES})}
"""Changes of clip art alone: drawn scenes have no such fields."""
RECIPES = ("slip", "declip", "superclip", "coca", "siglip2_like", "distill", "clipa_l16", "xclip", "vse")
"""`distill` reads the plain run of each seed as its teacher, and `clipa_l16` has stages."""


def make_config(form: str, data: str, variant: str, steps: int, *, seed: int = 0, teacher: str = "") -> Config:
    """A variant's configuration for so many steps, evaluated at the end alone."""
    options = ["--form", form, *(["--data", data] if data else [])]
    config = plain = load(CONFIGS / "plain.py", options)
    if variant in RECIPES:
        config = load(CONFIGS / f"{variant}.py", [*options, *(["--teacher", teacher] if variant == "distill" else [])])
    config = (CHANGES | WITH_FIELDS).get(variant, lambda same: same)(config)
    evals = {name: replace(spec, "every", "100%") for name, spec in plain.evals.items() if name != "retrieval"}
    stages = share(config, steps)
    changes = {
        "seed": seed,
        "stages": stages,
        "duration": str(steps - sum(int(stage.duration) for stage in stages.values())),
        "optim.warmup": "9.5%" if form == "clipart" else "5%",
        "evals": evals,
        "checkpoint": replace_each(config.checkpoint, {"every": "100%", "best": None}),
        "log_every": max(1, min(50, steps // 4)),  # two lines at least, between which steps are timed
    }
    return replace_each(config, changes)


def share(config: Config, steps: int) -> dict[str, Stage]:
    """The stages of a recipe that give these steps the shares that the recipe gives its own."""
    durations = {name: stage.duration for name, stage in config.stages.items()} | {"": config.duration}
    lengths = {name: float(duration.removesuffix("ep")) for name, duration in durations.items()}
    whole = sum(lengths.values())
    return {name: replace(stage, "duration", str(round(steps * lengths[name] / whole))) for name, stage in config.stages.items()}


def train(job: Mapping[str, Any]) -> dict[str, Any]:
    """Trains in this process; returns the last results, and the processor seconds of a step, loader included."""
    from jclip.train import main as train_main

    config = make_config(job["form"], job["data"], job["variant"], job["steps"], seed=job["seed"], teacher=job["teacher"])
    seen: dict[int, float] = {}
    threading.Thread(target=watch, args=(Path(job["workdir"]) / "metrics.jsonl", seen), daemon=True).start()
    results = train_main(config, job["workdir"])
    first, last = min(seen), max(seen)
    return {"results": results, "step_seconds": (seen[last] - seen[first]) / (last - first)}


def watch(path: Path, seen: dict[int, float]) -> None:
    """Notes at which processor second of this process each step was logged."""
    while True:
        time.sleep(0.1)
        lines = path.read_text().splitlines() if path.exists() else []
        step = max((line["step"] for text in lines if "loss" in (line := json.loads(text))), default=0)
        if step:
            seen.setdefault(step, time.process_time())


def run(job: Mapping[str, Any]) -> dict[str, Any]:
    """A job in a process of its own: what it returns."""
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=CONFIGS.parent)
    if done.returncode:
        raise SystemExit(f"{job['variant']}: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


class Comparison:
    """The runs of one form of the recipes, and the file that keeps them."""

    def __init__(self, form: str, path: Path, data: str, runs: Path, steps: int | None = None) -> None:
        self.form, self.path, self.data, self.runs = form, path, data, runs
        self.steps = steps or STEPS[form]
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def find(self, **facts: object) -> dict[str, Any] | None:
        """The line that has these facts."""
        facts |= {"form": self.form}
        return next((row for row in self.rows if facts.items() <= row.items()), None)

    def keep(self, **facts: object) -> dict[str, Any]:
        """Adds a line."""
        row = {"form": self.form, **facts}
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        return row

    def job(self, variant: str, steps: int, seed: int, workdir: str) -> dict[str, Any]:
        """Settings that a process of its own gets."""
        teacher = str(self.teacher(seed)) if variant == "distill" else ""
        return {
            "form": self.form,
            "data": self.data,
            "variant": variant,
            "steps": steps,
            "seed": seed,
            "workdir": workdir,
            "teacher": teacher,
        }

    def teacher(self, seed: int) -> Path:
        """The plain run of a seed, which is kept."""
        return self.runs / f"{self.form}_plain_{seed}"

    def ratio(self, variant: str) -> float:
        """Processor seconds of a step over those of the plain recipe, both of seed 0."""
        taken = {row["variant"]: row["step_seconds"] for row in self.rows if self._first(row)}
        return float(taken[variant] / taken["plain"])

    def _first(self, row: Mapping[str, Any]) -> bool:
        return (row["form"], row["seed"], row["budget"]) == (self.form, 0, "steps")

    def measure(self, variant: str, seed: int, budget: str) -> None:
        """One run, if the file does not have it: of as many "steps" as the plain recipe, or of as many "seconds"."""
        steps = self.steps
        if budget == "seconds":
            if variant == "plain" or abs(self.ratio(variant) - 1) < SAME:
                return
            steps = round(steps / self.ratio(variant))
        if self.find(variant=variant, seed=seed, budget=budget):
            return
        with tempfile.TemporaryDirectory() as folder:
            workdir = f"{folder}/run"
            if variant == "plain":
                workdir = str(self.teacher(seed))
                shutil.rmtree(workdir, ignore_errors=True)  # of a call that was ended before its line was written
            done = run(self.job(variant, steps, seed, workdir))
        self.keep(variant=variant, seed=seed, budget=budget, steps=steps, **done)

    def table(self) -> Table:
        """Mean and sample deviation of each metric in percent, of each variant, at equal steps and at equal seconds."""
        names = METRICS[self.form]
        table = Table("", "seconds a step", "seeds", *names.values(), "steps of as many seconds", *names.values())
        ours = [row for row in self.rows if row["form"] == self.form]
        for variant in dict.fromkeys(row["variant"] for row in ours):
            runs = [row for row in ours if row["variant"] == variant]
            found = {budget: [row for row in runs if row["budget"] == budget] for budget in ("steps", "seconds")}
            ratio = self.ratio(variant)
            cells = [_said([row["results"][metric] for row in found["steps"]]) for metric in names]
            if abs(ratio - 1) < SAME:
                cells += ["as many"] + [""] * len(names)
            elif later := found["seconds"]:
                cells += [str(later[0]["steps"]), *(_said([row["results"][metric] for row in later]) for metric in names)]
            else:
                cells += ["not run"] + [""] * len(names)
            table.add_row(variant, f"{ratio:.2f}", str(len(found["steps"])), *cells)
        return table


def _said(values: Sequence[float]) -> str:
    """Mean of shares in percent, and of several their sample deviation."""
    percent = [100 * value for value in values]
    return f"{statistics.mean(percent):.1f}" + (f" ± {statistics.stdev(percent):.1f}" if len(percent) > 1 else "")


def markdown(table: Table) -> str:
    """The table in the words of Markdown."""
    titles = [str(column.header) for column in table.columns]
    rows = zip(*(column.cells for column in table.columns), strict=True)
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def main() -> None:
    """Trains what the file does not have, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("form", nargs="?", choices=STEPS, help="data set and size of the models")
    parser.add_argument("results", nargs="?", type=Path, help="file of the runs, a JSON object a line; it goes on")
    parser.add_argument("--data", default="", help="folder of the shards of clipart")
    parser.add_argument("--steps", type=int, help="of the plain recipe, each with a file of its own (default: 300 or 630)")
    parser.add_argument("--only", nargs="+", choices=[*CHANGES, *WITH_FIELDS, *RECIPES], help="these variants (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument(
        "--budgets",
        nargs="+",
        choices=["steps", "seconds"],
        default=["steps", "seconds"],
        help="default: both; seconds need steps",
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where plain runs are kept (default: runs)")
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--markdown", action="store_true", help="print the table as docs/objectives.md has it")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(train(options.job)))
        return
    if options.results is None:
        parser.error("give a form and the file of the results")
    if 0 not in options.seeds and not options.table:
        parser.error("--seeds needs 0, whose run of equal steps says how long a step of each variant takes")
    comparison = Comparison(options.form, options.results, options.data, options.runs, options.steps)
    if not options.table:
        fields = WITH_FIELDS if options.form == "clipart" else {}
        variants: Sequence[str] = ["plain", *(options.only or [*CHANGES, *fields, *RECIPES])]
        jobs = [(variant, seed, budget) for seed in options.seeds for variant in variants for budget in options.budgets]
        for job in track(jobs, "runs", console=Console(stderr=True)):
            comparison.measure(*job)
    table = comparison.table()
    if options.markdown:
        print(markdown(table))
    else:
        Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    main()
