"""Descriptions of the commands, for `--help`."""

DESCRIPTION = "Pre-train, evaluate and use CLIP-style models in JAX."

TRAIN = """Train the model of a recipe; the same command again goes on from the last checkpoint in the workdir.

Every field of the configuration is an option:   jclip train configs/quickstart.py --workdir /tmp/run --optim.lr 3e-4
All of them, with their meaning:                 jclip train configs/quickstart.py --help
Some evaluations of the recipe, or none:         jclip train configs/quickstart.py --workdir /tmp/run --evals none

The data (--data.source) is one of
  shapes:train                          drawn scenes, made while training; also shapes:train?size=64&length=100000
  webdataset:/data/{00000..00099}.tar   tar shards of KEY.jpg and KEY.txt, read at random through an index
  webdataset:INDEX.json, webdataset:DIR?split=NAME    the same by a list of wids, or by Energon's .nv-meta
  arrayrecord:DIR                       array_record files, as `jclip pack --shards arrayrecord` writes them (extra: tfds)
  tfds:NAME[/CONFIG]:SPLIT              a prepared TensorFlow Dataset (extra: tfds)
  folder:/data/photos                   images in a folder and those below it, each with a .txt of the same name
  parquet:/data/train-*.parquet         tables, whose columns are fields; images are bytes in them, or paths (extra: tables)
  csv:/data/train.csv, jsonl:FILE       the same of text; also ?image=COLUMN&text=COLUMN&label=COLUMN&key=COLUMN&images=DIR
                                        ?captions=rows: the rows of an image are one example with several captions
In place of paths webdataset, parquet, csv and jsonl take addresses, s3://, gs://, hf://datasets/, https:// (extra: remote)

A tower sees the field of its name, or one that --data.fields TOWER FIELD says
  json.title                            a field of a field
  "text*0.5 | json.synthetic*0.5"       one of several, drawn each time by these weights from those that an example has
  "a photo of a {label}"                a text with fields in it; {label} is the name of the class
"""

SOURCES = """The data of a suite may also be
  webdataset:ROOT/test                  CLIP_benchmark's layout: nshards.txt and {0,1,...}.tar, with ROOT/classnames.txt
  folder:DIR?labels=folders             images, labelled by the folders right below DIR
  sugarcrepe:FILE.json?images=DIR       an image, a right and a wrong caption (for Choice)
  winoground:FILE.jsonl?images=DIR      two images and their two captions (for Choice)
  esc50:DIR?folds=1,2                   ESC-50's layout: meta/esc50.csv and audio/*.wav
  shapes:counting, shapes:left_right    drawn scenes with captions of which the first is true (for Choice)
"""

EVAL = """Run evaluations: those of a run's own configuration on one of its checkpoints, or of a suite on any model.

  jclip eval runs/quickstart                                          the evaluations of its recipe, on the last checkpoint
  jclip eval MODEL --suite configs/suite_shapes.py --json OUT.json     a suite, with everything that `jclip report` shows

MODEL is a --workdir, weights as in `jclip convert`, or hf://ORG/NAME. A suite is a Python file with get_suite() -> Suite; its
arguments are options:   jclip eval MODEL --suite FILE.py --root /data     jclip eval MODEL --suite FILE.py --help-suite
Data of your own:        jclip eval MODEL --suite configs/suite_data.py --labelled SOURCE --captioned SOURCE

With --json OUT.json the results are written to that file after each evaluation, with protocol, settings, fingerprints of weights
and data, counts and versions. The same command goes on where it stopped; what has changed is computed again. Features are kept
in --cache by the content they were computed from.

"""
EVAL += SOURCES

REPORT = """Write one HTML page of files of results, which needs no network: tables, curves, retrieved pictures, mistakes.

The folder of an adaptation has a page of its own: accuracy over shots, costs, words near learned contexts. `jclip adapt` writes
it in the end; `jclip report DIR` writes it again, also while that command is running."""

CLASSIFY = """Classify images, or sounds, by the names of classes, or with a linear probe, and print the likeliest.

Beside the cosine of image and prompt stands a probability: of a softmax model among the classes given, of a sigmoid model of each
class by itself. A line below says where perhaps none of them fits: a sigmoid model gives each less than 1/2, or with a softmax
model "a photo." and the like, which say nothing, fit better (of sounds "a sound.").

  jclip classify cat.jpg dog.jpg --model runs/clipart --labels cat dog "hot dog"
  jclip classify cat.jpg --model hf://ORG/NAME --labels file:classes.txt --templates set:imagenet --truth cat
  jclip classify cat.jpg --model runs/clipart --probe probe.safetensors
  jclip classify dog.wav rain.flac --model runs/clap --labels dog rain
  jclip classify photos '/data/*/[ab]*.jpg' --model runs/clipart --labels cat dog --top 1 --output classes.csv

FILES are images, or else sounds, folders with all of them in and below, and patterns; images and sounds together are refused. One
that cannot be read is said, and the others go on; where none can be read the exit status is 1. --output gets a line for each,
those that cannot be read too: columns image (or sound), problem, class_1, cosine_1, ..., or objects of JSON.
"""

CAPTION = """Write what is in images or sounds: a line for each, by a model with an objective Caption, or by open_clip's CoCa.

  jclip caption runs/coca photo.png
  jclip caption runs/coca photos --beams 5 --output captions.jsonl
  jclip caption open_clip_pytorch_model.bin photos --architecture coca_ViT-L-14

FILES are files, folders with all images or sounds in and below them, and patterns. One beam takes the likeliest word each time;
more follow so many captions at a time and take the likeliest whole, which is slower by as much. What cannot be read is said, and
the others go on. --output gets one JSON object a line, {"image": PATH, "caption": TEXT} or {"image": PATH, "problem": WHY}, and
of sounds "sound" in place of "image".
"""

INSPECT = """Show what a recipe will do before it is trained: a page that needs no network and runs no script (extra: report).

It has the first 16 examples of each view as the towers will see them, augmentation included; the learning rate by step; every
parameter with its shape, sharding, weight decay, factor on the learning rate, and whether it is trained; operations and memory;
and the rate of the loader on this machine. Every field of the configuration is an option, as in `jclip train`.

  jclip inspect configs/quickstart.py                          inspect.html
  jclip inspect configs/vit_b16.py --data "/data/{00000..00099}.tar" --topology v5e:4x4 --html runs/vit_b16.html
"""

COMPILE = """Compile the train step of a recipe ahead of time, without an accelerator, and say whether it fits.

It prints parameters, bytes a device, what the devices send each other, floating-point operations and, of TPU slices, the time a
step will take. Every field of the configuration is an option, as in `jclip train`. TPU slices need the extra: pip install
'jclip[tpu]'. The exit status is 0 where it fits.

The estimated step is the TPU compiler's own count of cycles, by part of the model: a model and no measurement, good for ratios
and within some tens of percent. Kernels of our own count with their operations, bytes and exponentials. Collectives count with
their bytes over the links that their devices have to each other, as if nothing were computed meanwhile, and stand apart: a step
takes between the estimate and the estimate with the transfers.

--sweep PATH=VALUE,VALUE ... compiles every combination of values, reports each as soon as it is known, and ends with a table of
what fits and how fast it is, best first. Values that are tuples are joined by "+". Without any it takes some around the recipe:
remat, the batch and twice that, and with and without its fsdp and accumulate. --json FILE keeps the rows, and goes on from them.

  jclip compile configs/vit_b16.py --topology v5e:4x4
  jclip compile configs/vit_b16.py --topology v5e:4x4 --sweep --json rows.json
  jclip compile configs/vit_b16.py --topology v5e:4x4 --sweep model.remat=none,attention+fc1 batch_size=1024,4096 mesh.fsdp=1,4
"""

EMBED = """Write the embeddings of a source, or of a folder of images, as unit vectors to DIR/TOWER.npy, with DIR/keys.jsonl.

Where an example cannot be read the row is NaN, and DIR/problems.txt says why. Line i of keys.jsonl is the key of row i, as JSON.
The same command goes on where an earlier one was stopped; a folder takes the embeddings of one source by one model. Photographs
are turned as their EXIF data say, which training and evaluations do not do. Transparency is dropped after the resize, in which
transparent pixels count for nothing, as in open_clip.

  jclip embed runs/clipart 'webdataset:/data/*.tar' --out DIR --towers image text --fields text 'text | json.caption'
"""

PACK = """Write any source as shards that `webdataset:` or `arrayrecord:` reads, with smaller pictures if that is asked for.

  jclip pack /data/photos /data/packed --shorter-side 256
  jclip pack 'webdataset:/data/{00000..00099}.tar' /data/small --shorter-side 288 --quality 90
  jclip pack parquet:/data/train /data/records --shards arrayrecord

The name of what was written is the only line on the standard output: it can be given to --data.source. Pictures that are not made
smaller keep their bytes; texts, labels, further fields and the key in the source (in KEY.json) come along. What cannot be used is
left out, and counted by reason in DIR/manifest.json, which also has the SHA-256 of each shard. A labelled source is written
in CLIP_benchmark's layout, DIR/SPLIT, with the names of its classes; as array_record these stand in the manifest. The
same source gives the same bytes; the same command goes on where an earlier one was stopped, and a folder takes one source in one
form.
"""

FILTER = """Say which examples of a source are worth training on, by rules that are asked one after the other.

  jclip filter SOURCE DIR --subset.where 'words(text) > 2' --languages en     metadata and captions, without a model
  jclip filter SOURCE DIR --model runs/noisy --score-best 0.7                 the best 70% by cosine of image and caption
  jclip filter SOURCE DIR --model MODEL --duplicates 0.97 --against tfds:cifar10:test
  jclip filter SOURCE DIR --model MODEL --like tfds:cifar10:train             images of the kinds that it has
  jclip filter SOURCE DIR --balance entries.txt --balance-most 20000          MetaCLIP's balancing
  jclip filter SOURCE DIR --recipe configs/filter_basic.py                    DataComp's baselines, and your own

SOURCE and DIR come first. Every rule is an option, below. The rules are asked in this order, and each example is counted by the
first that drops it: subset, language, unlike, score, contaminated, duplicate, balance; unreadable is what a rule could not read.

DIR/kept.jsonl has the keys of what is kept, for --data.subset.keys; DIR/table.parquet every example with language, cluster,
score, nearest images and the rule that dropped it, for --data.subset.table (extra: tables); DIR/index.html shows some of each
(extra: report);
DIR/filter.json says of what all that is the result. The only line on the standard output is the command that trains on what is
kept. The same command goes on where an earlier one was stopped; a folder takes the result of the same rules, model and data.
"""

ADAPT = """Adapt a model to a few examples a class, by several methods under one protocol, and measure each on a test set.

  jclip adapt MODEL --method tip tip_f coop --source TRAIN --val VAL --test TEST --shots 1 2 4 8 16 --seeds 3 --out DIR
  jclip adapt MODEL --method coop --methods.coop.position middle --methods.coop.per-class True ...
  jclip adapt MODEL --recipe FILE.py --out DIR                methods of your own: get_adapt() -> Adapt

Methods: tip and tip_f (Tip-Adapter, Tip-Adapter-F), clip_adapter, linear (a head that begins as the text classifier), cross_modal
(texts as further shots), coop, cocoop, lora, fine_tune (with WiSE-FT and soups), prompts (templates chosen on validation).

Whatever a method chooses it chooses on --val; with --select test everything is done a second time with the choices made on the
test, as some published codes make them, and the table has the difference. DIR/results.json has every number, DIR/page.html curves
and costs (extra: report); DIR/METHOD/shots-K/seed-S is a model: `jclip.load`, `jclip classify` and `jclip eval` open it, and
`jclip convert` writes what was merged into its towers. The same command goes on behind the last cell that was finished.
"""

DATA = """Say what a source of data holds, before anything is trained on it.

  jclip data 'webdataset:/data/{00000..00099}.tar'                 as text
  jclip data /data/photos --html data.html                         and as a page with pictures
  jclip data 'webdataset:/data/*.tar' --text json.caption --json   for a program
  jclip data 'webdataset:/data/*.tar' --text 'text | json.caption' how often each of two captions is there, and is drawn
  jclip data 'webdataset:/data/*.tar' --rate --size 256            how fast it can be trained on

It prints examples, shards and fields, from the index; and of --most examples, spread evenly: which cannot be used and why, sizes
and formats of images, lengths of captions, how many are cut at the context length or equal another, and how fast this machine
reads and decodes. `jclip train` prints the part that needs no reading.

--rate prints how many pictures a second one core, and the loader of this host, read, decode, crop and resize to --size, with
data.decode "exact" and "fast"; the loader's with --workers processes, or in threads. A run needs as many as its devices train on
(examples_per_second in its metrics.jsonl); where the host gives fewer, `jclip train` says how long it waits for data. What helps,
in this order: more workers, up to the number of cores; --data.decode fast; the extra fast (numba); smaller pictures on disk.
"""

CONVERT = """Write weights as a folder of another library: of a training run, or of a folder or file that one of them has written.

What is written gives the same features there of the same pixels and token ids, to 1e-5 in f32; what cannot, is refused. Pixels
are made as open_clip makes them. transformers cuts the centre out one pixel further to the left or top where the margin is 3,
7, 11, ... pixels, resizes by torchvision, and converts to RGB before that instead of after.

SRC may be hf://ORG/NAME[@REVISION], which is fetched into the cache of huggingface_hub (extra: hub). A weight file alone does
not say its architecture: --architecture does, and "-quickgelu" at the end of a name gives both towers that activation, which
OpenAI's weights need. --tokenizer gives the vocabulary where neither says it: a sentencepiece model or a tokenizer.json.
--image-size and --context-length make it a model of larger images or longer texts, or smaller: its positions are resampled as
open_clip does.
"""

INFO = """Print what a model is: parameters, GFLOPs of one example (two operations for a multiply-add), sizes, activation,
tokenizer and normalisation. Weights are checked by name and shape, not read.
"""
