"""The command `publish`: write a trained network and its model card into a small folder."""

import dataclasses
import hashlib
import inspect
import json
import pathlib
import shlex

import numpy as np

from senet.cli.commands import (
    class_table,
    evaluate_trained,
    new_folder,
    result_line,
    temporary_folder,
)
from senet.data.datasets import steps_per_epoch
from senet.data.inputs import statistics_of
from senet.engine.compat import tf, without_chatter
from senet.engine.errors import Failure
from senet.engine.text import printable, shortened
from senet.hyperparameters import portable_path
from senet.run.checkpoints import Checkpoints
from senet.run.folder import RunFolder
from senet.run.rows import format_row, read_rows
from senet.run.trained import TrainedNetwork

CARD = "README.md"
TEMPLATE = """\
# {network} trained on {dataset}

An image classifier: the network `{network}` of `{script}`, with {parameters:,} trainable
parameters, trained {start} to the end of epoch {epochs:,} (step {step:,}).
`python {script} publish` wrote this folder, which does not contain the optimizer's state.

## Usage

In a clone of the repository:

```bash
python {script} predict photo.jpg --run_dir={folder}
python {script} evaluate --run_dir={folder}
```

To fine-tune the network, train with the same architecture hyperparameters and
`--initial_checkpoint={folder}`.

**Input**: RGB images of {side}x{side} pixels, uint8. `predict` rotates images according to
their EXIF orientation, centre-crops them to a square and resizes them. **Normalisation** is
part of the graph: (value - mean) / std per channel, with mean {mean}
and std {std} in pixel values, computed from the training images.

**Classes** ({count:,}): {classes}.

## Training

Data set: `{dataset}`, {train:,} training and {test:,} test images. {note}

{trained} with this command, with seed {seed} and all other hyperparameters as in
`hyperparameters.json`:

```bash
{command}
```

## Results

The last row of `logs.txt`:

```
{row}
```

When this folder was written, `evaluate` printed these results. Each row of the table is a true
class; the numbered columns count the predictions of each class:

```
{result}

{table}
```

## Limitations

* The network predicts one of its {count:,} classes, whatever the image shows.
* It sees {side}x{side} pixels: small objects, and objects far from the centre of a photo, are lost.
* Its accuracy was measured only on the test set above. Its probabilities are not calibrated.

## License

The code is under the MIT License (`LICENSE` in the repository). This card states no license for
the weights.

## Files

SHA-256 checksums, which `sha256sum --check README.md` verifies in this folder:

```
"""


def publish(network, hyperparameters, folder, checkpoint="", note=""):
    """Write a trained network (without the optimizer's state) and its card into a new `folder`.
    The folder works as a `run_dir` for the other commands and as an `initial_checkpoint` for
    training; it contains no absolute path of this machine. `note` is added to the card's paragraph
    on the training data.

    Raises Failure if the data set differs from the one that the network was trained on, or if
    logs.txt has no row for the checkpoint."""
    hp, target = hyperparameters, new_folder(folder)
    run = RunFolder(hp)
    recorded = type(hp)(**hp.load(run.settings))
    with TrainedNetwork(network, hp, checkpoint) as trained:
        evaluation, data = evaluate_trained(trained)
        if not all(map(np.array_equal, trained.statistics, statistics_of(data))):
            raise Failure(
                f"the training images of {data.name} differ from those that {trained.checkpoint} "
                f"was trained on; restore them, or use the training run's --dataset and --data_dir"
            )
        rows = _rows(run, trained, steps_per_epoch(data.train, hp.batch_size))
        fields = dataclasses.replace(recorded, dataset=hp.dataset).portable()
        with temporary_folder(target) as temporary:
            copy = RunFolder(dataclasses.replace(hp, run_dir=str(temporary)))
            copy.model.mkdir(parents=True)
            _save(trained, copy.model)
            copy.row_file.write_text("".join(f"{format_row(row)}\n" for row in rows), "utf-8")
            copy.settings.write_text(json.dumps(fields, indent=2) + "\n", "utf-8")
            card = _card(trained, evaluation, data, rows, fields, portable_path(folder), note)
            (temporary / CARD).write_text(f"{card}{_hashes(temporary)}```\n", "utf-8")
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    print(f"checkpoint: {trained.checkpoint}")
    print(result_line(evaluation))
    print(f"published: {target} ({size / 1e6:.1f} MB); model card: {target / CARD}")
    run_dir = shlex.quote(str(target))
    print(f"next: python {_script(network)} predict IMAGE... --run_dir={run_dir}")


def _rows(run, trained, epoch_steps):
    """Return the rows of logs.txt up to the epoch of the checkpoint."""
    rows, (epoch, beyond) = read_rows(run.row_file), divmod(trained.step, epoch_steps)
    if beyond or epoch not in rows:
        raise Failure(
            f"{run.row_file} has no row for {trained.checkpoint}: step {trained.step:,} is not the "
            f"last step of a tested epoch (an epoch has {epoch_steps:,} steps); use another "
            f"--checkpoint"
        )
    return [row for number, row in sorted(rows.items()) if number <= epoch]


def _save(trained, folder):
    """Write the network's variables, the data's statistics and the step as a checkpoint."""
    step = tf.train.get_or_create_global_step()
    checkpoints = Checkpoints(folder, trained.outputs, trained.hyperparameters.network())
    step.load(trained.step, trained.session)
    with without_chatter():
        checkpoints.write(trained.session, trained.step)


def _script(network):
    return pathlib.Path(inspect.getfile(network)).name


def _card(trained, evaluation, data, rows, fields, folder, note):
    """Return the model card up to its list of files. `fields` are the portable hyperparameters,
    `folder` is the name of the published folder on the card."""
    network, hp, names = trained.network, trained.hyperparameters, data.label_names
    defaults = {field.name: field.default for field in dataclasses.fields(hp)}
    changed = {name: value for name, value in fields.items() if value != defaults[name]}
    options = [f"--{name}={value}" for name, value in changed.items()]
    start = fields["initial_checkpoint"]
    planned = {row["total_epochs"] for row in rows}
    extended = len(planned) > 1
    mean, std = (", ".join(f"{value:.4f}" for value in values) for values in trained.statistics[:2])
    return TEMPLATE.format(
        network=network.__name__,
        script=_script(network),
        parameters=sum(v.shape.num_elements() for v in tf.trainable_variables()),
        start=f"from the weights of `{start}`" if start else "from scratch",
        epochs=trained.step // steps_per_epoch(data.train, hp.batch_size),
        step=trained.step,
        folder=shlex.quote(folder),
        side=hp.image_size,
        mean=mean,
        std=std,
        count=len(names),
        classes=shortened(names, count=1000),
        dataset=fields["dataset"],
        train=len(data.train.labels),
        test=len(data.test.labels),
        note=printable(note),
        trained="The run was extended and last started" if extended else "The network was trained",
        command=shlex.join(["python", _script(network), *options]),
        seed=hp.seed,
        row=format_row(rows[-1]),
        result=result_line(evaluation),
        table="\n".join(class_table(evaluation.confusion_matrix(len(names)), names)),
    )


def _hashes(folder):
    """Return a line for each file in `folder`, in the format of `sha256sum`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n"
        for path in files
    )
