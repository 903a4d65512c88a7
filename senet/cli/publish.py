"""The command `publish`: write a trained network and its model card into a small folder."""

import dataclasses
import hashlib
import inspect
import json
import os
import pathlib
import shlex

from senet.cli.commands import class_table, evaluate_trained, result_line
from senet.cli.export import new_folder, temporary_folder
from senet.data.datasets import steps_per_epoch
from senet.engine.compat import tf, without_chatter
from senet.engine.errors import Failure
from senet.engine.text import printable, shortened
from senet.hyperparameters import portable_path
from senet.run.checkpoints import Checkpoints
from senet.run.folder import HASHES, RunFolder
from senet.run.rows import format_row, read_rows
from senet.run.trained import TrainedNetwork

CARD = "README.md"


def publish(network, hyperparameters, folder, checkpoint="", note=""):
    """Write a trained network (without the optimizer's state) and its card into a new `folder`.
    The folder works as a `run_dir` for the other commands and as an `initial_checkpoint` for
    training; it contains no absolute path of this machine. `note` is added to the card's paragraph
    on the training data. Raises Failure if logs.txt has no row for the checkpoint."""
    target = new_folder(folder)
    hp = hyperparameters
    run = RunFolder(hp)
    recorded = type(hp)(**hp.load(run.settings))
    with TrainedNetwork(network, hp, checkpoint) as trained, trained.graph.as_default():
        evaluation, data = evaluate_trained(trained)
        rows = _rows(run, trained, steps_per_epoch(data.train, hp.batch_size))
        fields = dataclasses.replace(recorded, dataset=hp.dataset).portable()
        with temporary_folder(target) as temporary:
            copy = RunFolder(dataclasses.replace(hp, run_dir=str(temporary)))
            copy.model.mkdir(parents=True)
            step = tf.train.get_or_create_global_step()
            checkpoints = Checkpoints(copy.model, trained.outputs, hp.network())
            step.load(trained.step, trained.session)
            with without_chatter():
                checkpoints.write(trained.session, trained.step)
            copy.row_file.write_text("".join(f"{format_row(row)}\n" for row in rows), "utf-8")
            copy.settings.write_text(json.dumps(fields, indent=2) + "\n", "utf-8")
            card = _card(trained, evaluation, data, rows, fields, portable_path(folder), note)
            (temporary / CARD).write_text(card, "utf-8")
            size = _write_hashes(temporary)
    print(f"checkpoint: {trained.checkpoint}")
    print(result_line(evaluation))
    print(f"published: {target} ({size / 1e6:.1f} MB); model card: {target / CARD}")
    run_dir = shlex.quote(str(target))
    script = shlex.quote(os.path.relpath(inspect.getfile(network)))
    print(f"next: python {script} predict IMAGE... --run_dir={run_dir}")


def _rows(run, trained, epoch_steps):
    """Return the rows of logs.txt up to the epoch of the checkpoint, as text."""
    rows = read_rows(run.row_file)
    epoch, beyond = divmod(trained.step, epoch_steps)
    if beyond or epoch not in rows:
        raise Failure(
            f"{run.row_file} has no row for {trained.checkpoint}: step {trained.step:,} is not the "
            f"last step of a tested epoch (an epoch has {epoch_steps:,} steps); use another "
            f"--checkpoint, or the data set of the training run"
        )
    return [row for number, row in sorted(rows.items()) if number <= epoch]


def _card(trained, evaluation, data, rows, fields, folder, note):
    """Return the model card. `fields` are the portable hyperparameters, `folder` is the name of the
    published folder on the card."""
    hp = trained.hyperparameters
    side = hp.image_size
    network = trained.network.__name__
    script = pathlib.Path(inspect.getfile(trained.network)).name
    dataset = fields["dataset"]
    train, test = len(data.train.labels), len(data.test.labels)
    names = data.label_names
    count = len(names)
    folder, note = shlex.quote(folder), printable(note)
    parameters = sum(v.shape.num_elements() for v in tf.trainable_variables())
    initial = fields["initial_checkpoint"]
    start = f"from the weights of `{initial}`" if initial else "from scratch"
    epochs = trained.step // steps_per_epoch(data.train, hp.batch_size)
    mean, std = (", ".join(f"{value:.4f}" for value in values) for values in trained.statistics[:2])
    defaults = {field.name: field.default for field in dataclasses.fields(hp)}
    options = [f"--{name}={value}" for name, value in fields.items() if value != defaults[name]]
    command = shlex.join(["python", script, *options])
    table = "\n".join(class_table(evaluation.confusion_matrix(len(names)), names))
    return f"""\
# {network} trained on {dataset}

An image classifier: the network `{network}` of `{script}`, with {parameters:,} trainable
parameters, trained {start} to the end of epoch {epochs:,} (step {trained.step:,}).
`python {script} publish` wrote this folder, without the optimizer's state.

In a clone of the repository:

```bash
python {script} predict photo.jpg --run_dir={folder}
python {script} evaluate --run_dir={folder}
python {script} --initial_checkpoint={folder} --dataset=FOLDER --run_dir=runs/mine
(cd {folder} && sha256sum --check {HASHES})
```

**Input**: RGB images of {side}x{side} pixels, uint8. `predict` rotates images according to
their EXIF orientation, centre-crops them to a square and resizes them. **Normalisation** is
part of the graph: (value - mean) / std per channel, with mean {mean}
and std {std} in pixel values, computed from the training images.

**Classes** ({count:,}): {shortened(names, count=1000)}.

**Limitations**: The network predicts one of its {count:,} classes, whatever the image shows. It
sees {side}x{side} pixels: small objects, and objects far from the centre of a photo, are lost.
Its probabilities are not calibrated.

**License**: The code is under the MIT License. This card states no license for the weights.

## Training and results

Data set: `{dataset}`, {train:,} training and {test:,} test images. {note}

The run was last started with this command, with seed {hp.seed} and all other hyperparameters as in
`hyperparameters.json`. The last line is its row of `logs.txt`:

```
{command}
{format_row(rows[-1])}
```

When this folder was written, `evaluate` printed these results. Each row of the table is a true
class; the numbered columns count the predictions of each class:

```
{result_line(evaluation)}

{table}
```
"""


def _write_hashes(folder):
    """Write the SHA-256 of each file in `folder`, for `sha256sum --check`; return their bytes."""
    files = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    lines = [f"{hashlib.sha256(files[p]).hexdigest()}  {p.relative_to(folder)}\n" for p in files]
    (folder / HASHES).write_text("".join(lines), "utf-8")
    return sum(map(len, files.values()))
