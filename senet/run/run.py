"""A training run: its folder, checkpoints, logs and what the person at the terminal sees.

run_dir/hyperparameters.json     what the run was started with
run_dir/model/                   checkpoints
run_dir/logs.txt                 one row an epoch
run_dir/logs/                    the same for TensorBoard
run_dir/lock                     held by the process that trains
"""

import contextlib
import dataclasses
import json
import math
import pathlib
import re
import signal
import time
import zlib

import filelock
import numpy as np
from tqdm import tqdm

from senet.compat import tf
from senet.data.datasets import steps_per_epoch
from senet.data.inputs import names_as_numbers
from senet.devices import describe_devices, describe_precision, visible_gpus
from senet.errors import Failure
from senet.run.checkpoints import Checkpoints
from senet.run.events import (
    EventFile,
    chart_layout,
    epoch_summary,
    graph_to_show,
    hyperparameter_page,
    writing,
)
from senet.run.signals import Stopped, StopSignals

ROW = (
    "epoch: {epoch}/{total_epochs}, train_loss: {train_loss:.4f}, train_acc: {train_accuracy:.4f}, "
    "test_loss: {test_loss:.4f}, test_acc: {test_accuracy:.4f}"
)
# Fields that say where a run finds things and when it saves, not what it computes.
MAY_CHANGE = {"data_dir", "run_dir", "save_minutes", "devices", "xla", "allow_soft_placement"}


class Run:
    """One run in its `run_dir`, new or going on; use it in a `with` statement. Of several hosts,
    only the chief of the `cluster` writes and prints; the others follow it.

    Raises Failure if another process has the run, or if the run was started with hyperparameters
    that compute something else."""

    def __init__(self, hyperparameters, cluster):
        self.hyperparameters = hyperparameters
        self.cluster = cluster
        self.folder = pathlib.Path(hyperparameters.run_dir)
        self.model_folder = self.folder / "model"
        self.log_folder = self.folder / "logs"
        self.row_file = self.folder / "logs.txt"
        self.settings = self.folder / "hyperparameters.json"
        self.lock = filelock.FileLock(self.folder / "lock", timeout=0)
        self.stop_signals = StopSignals()

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            if self.cluster.chief:
                self._take_folder(stack)
            stack.enter_context(self.stop_signals)
            self._open = stack.pop_all()
        return self

    def _take_folder(self, stack):
        with writing(self.model_folder):
            self.model_folder.mkdir(parents=True, exist_ok=True)
        try:
            stack.enter_context(self.lock)
        except filelock.Timeout:
            raise Failure(
                f"{self.folder} is being trained by another process: "
                f"wait for it, or give another --run_dir"
            ) from None
        self._compare_hyperparameters()

    def __exit__(self, *_):
        self._open.close()

    def _compare_hyperparameters(self):
        """Refuse to go on from a checkpoint with other hyperparameters than it was made with. More
        epochs than before are no other ones."""
        if not any(self.model_folder.glob("model.ckpt-*")):
            return
        try:
            before = dict(json.loads(self.settings.read_text()))
        except (OSError, ValueError, TypeError):
            raise Failure(
                f"{self.folder} has checkpoints, but {self.settings} cannot be read: "
                f"give another --run_dir to start afresh"
            ) from None
        changes = [
            f"{name} was {before[name]}, now {value}"
            for name, value in self._what_matters().items()
            if value != before.setdefault(name, value)
            and not (name == "total_epochs" and value > before[name])
        ]
        if changes:
            raise Failure(
                f"{self.folder} was started with other hyperparameters ({'; '.join(changes)}): "
                f"give the earlier ones to go on with it, or another --run_dir to start afresh"
            )

    def _what_matters(self):
        """The hyperparameters that decide what is computed, {name: value}."""
        fields = dataclasses.asdict(self.hyperparameters)
        return {name: value for name, value in fields.items() if name not in MAY_CHANGE}

    def start(self, session, network, data, inputs, test_batch):
        """Give the variables of `session` the values of the newest checkpoint, or their first
        ones; say what will be trained, how long that takes without a GPU, and where to watch it.
        `test_batch` is what tests a batch of `inputs`. Returns the number of steps and of epochs
        done."""
        self.session, self.network, self.data = session, network, data
        self.checkpoints = Checkpoints(self.model_folder)
        self.epoch_steps = steps_per_epoch(data.train, self.hyperparameters.batch_size)
        session.run(tf.global_variables_initializer())
        self.cluster.check_same(
            hyperparameters=json.dumps(self._what_matters()),
            code=_source_code(network),
            pictures=repr([zlib.crc32(array) for split in data[1:3] for array in split]),
        )
        goes_on, epochs_done = self._open_folder(session) if self.cluster.chief else (False, 0)
        goes_on, step, epochs_done = self.cluster.from_chief(goes_on, self._step(), epochs_done)
        fingerprint = self.checkpoints.same(session, step) if goes_on else ""
        self.cluster.check_same(checkpoint=fingerprint)
        self.saved_at = time.monotonic()
        if self.cluster.chief:
            self._say_what_will_be_trained(goes_on, step, epochs_done)
            self._say_if_it_takes_days(
                lambda batch: session.run(test_batch, inputs.feed(batch)), epochs_done
            )
        return step, epochs_done

    def _open_folder(self, session):
        """Restore what is there and open the logs; returns whether the run goes on, and the number
        of epochs done."""
        if goes_on := self.checkpoints.restore(session):
            self._compare_data()
        settings = json.dumps(dataclasses.asdict(self.hyperparameters), indent=2)
        _replace_text(self.settings, settings + "\n")

        # An epoch is done when its row is written; a row without its checkpoint is computed again.
        self.rows = _read_rows(self.row_file)
        epochs_done, steps_beyond = divmod(self._step(), self.epoch_steps)
        if epochs_done and not steps_beyond and epochs_done not in self.rows:
            epochs_done -= 1
        self.rows = {epoch: row for epoch, row in self.rows.items() if epoch <= epochs_done}
        _replace_text(self.row_file, "".join(self.rows.values()))
        self.events = self._open.enter_context(EventFile(self.log_folder))
        # TensorBoard drops what it has from this epoch on.
        self.events.write(
            step=epochs_done + 1, session_log=tf.SessionLog(status=tf.SessionLog.START)
        )
        if not goes_on:
            self.events.write(graph_def=graph_to_show(session.graph).SerializeToString())
            self.events.write(summary=chart_layout())
            self.events.write(summary=hyperparameter_page(self.network, self.hyperparameters))
        return goes_on, epochs_done

    def _say_what_will_be_trained(self, goes_on, step, epochs_done):
        data = self.data
        total_epochs = self.hyperparameters.total_epochs
        parameters = sum(v.shape.num_elements() for v in tf.trainable_variables())
        precision = describe_precision(self.hyperparameters.mixed_precision)
        state = f"goes on at step {step:,} of {total_epochs * self.epoch_steps:,}"
        print(
            f"network: {self.network}, {parameters:,} trainable parameters\n"
            f"data: {data.name}, {len(data.train.labels):,} training and "
            f"{len(data.test.labels):,} test pictures in {len(data.label_names)} classes\n"
            f"device: {describe_devices(self.cluster.strategy)}, {precision}\n"
            f"run: {self.folder} ({state if goes_on else 'new'})\n"
            f"watch it: tensorboard --logdir {self.folder}",
            flush=True,
        )
        if epochs_done == total_epochs:
            print("finished already; to go on, give a larger --total_epochs")

    def _say_if_it_takes_days(self, test, epochs_done):
        """Estimate the time to the last epoch, from a batch that is tested, if there is no GPU."""
        hp = self.hyperparameters
        if visible_gpus() or self.cluster.strategy.num_replicas_in_sync > 1:
            return
        batch = self.data.train.first(min(hp.micro_batch_size or hp.batch_size, 32))
        test(batch)  # which includes set-up
        started = time.perf_counter()
        test(batch)
        a_picture = (time.perf_counter() - started) / len(batch.labels)
        pictures = (hp.total_epochs - epochs_done) * len(self.data.train.labels)
        # The way back is twice the work of the way there.
        days = 3 * a_picture * pictures / (24 * 60 * 60)
        if days > 1:
            time_needed = f"about {float(f'{days:.1g}'):,.0f} days" if days > 2 else "over a day"
            print(
                f"note: without a GPU this takes {time_needed}; a smaller start:\n"
                f"  python {self.network}.py {hp.SMALLER} --run_dir=small",
                flush=True,
            )

    def _compare_data(self):
        """Refuse to go on with other training pictures than those of the checkpoint."""
        variables = {v.op.name: v for v in tf.global_variables()}
        kept = [variables[f"input/{name}"] for name in ("mean", "std", "label_names")]
        now = *self.data.channel_statistics(), names_as_numbers(self.data.label_names)
        if not all(map(np.array_equal, self.session.run(kept), now)):
            raise Failure(
                f"the training pictures are not those with which {self.folder} was started: "
                f"bring them back to go on with it, or give another --run_dir to start afresh"
            )

    def _step(self):
        return int(self.session.run(tf.train.get_global_step()))

    def train_batches(self, todo, epoch, first):
        """Yield the batches `todo`, those of an epoch from number `first` on, and look after the
        run between them; measures images/s, without the first one, which may include set-up."""
        text = f"epoch {epoch}/{self.hyperparameters.total_epochs}"
        self.images_per_second = None
        started, seen = time.perf_counter(), 0
        pictures = len(self.data.train.labels)
        done = pictures * first // self.epoch_steps
        for number, batch in enumerate(self._watched(todo, pictures, text, done)):
            yield batch
            seen += len(batch.labels)
            self.images_per_second = seen / (time.perf_counter() - started)
            if number == 0:
                started, seen = time.perf_counter(), 0

    def test_batches(self, todo):
        """Yield the batches `todo`, all of the test set, and look after the run between them."""
        return self._watched(todo, len(self.data.test.labels), "testing")

    def _watched(self, todo, pictures, text, done=0):
        """Yield batches with a progress line on a terminal, from `done` to `pictures`. Between
        them, save if it is due, and stop if it is asked for."""
        with tqdm(
            total=pictures,
            initial=done,
            desc=text,
            unit=" images",
            leave=False,
            disable=None if self.cluster.chief else True,
            ncols=100,
            bar_format="{desc} {percentage:3.0f}% |{bar}| {rate_fmt}, {remaining} left{postfix}",
        ) as self.bar:
            self._between_steps()
            for batch in todo:
                yield batch
                self.bar.update(len(batch.labels))
                self._between_steps()

    def _between_steps(self):
        received = self.stop_signals.received
        stop = self.cluster.any(received)
        if stop or time.monotonic() - self.saved_at > 60 * self.hyperparameters.save_minutes:
            self._save()
        if stop:
            received = received or signal.SIGTERM  # another worker got one
            raise Stopped(
                received,
                f"stopped by {received.name} and saved after step {self._step():,}: "
                f"the same command goes on from there",
            )

    def show(self, step, result):
        """Show the means of the epoch so far on the progress line. Raises Failure if the loss is
        not finite."""
        if not math.isfinite(result["loss"]):
            raise Failure(
                f"the loss is not finite at step {step:,} (learning rate "
                f"{result['learning_rate']:.4g}): nothing of it was saved; start again in another "
                f"--run_dir with a lower --init_learning_rate"
            )
        text = f"loss {result['loss']:.4f}, accuracy {result['accuracy']:.4f}"
        self.bar.set_postfix_str(text, refresh=False)

    def end_epoch(self, epoch, values, tested):
        """Print the row of an epoch, keep it in logs.txt and, with what else is in the dict
        `values` and in `tested`, the Evaluation of the test set, for TensorBoard; save."""
        if not self.cluster.chief:
            return
        values.update(test_loss=tested.loss, test_accuracy=tested.accuracy)
        row = ROW.format(epoch=epoch, total_epochs=self.hyperparameters.total_epochs, **values)
        print(row, flush=True)
        self.rows[epoch] = row + "\n"
        with writing(self.row_file), self.row_file.open("a") as file:
            file.write(self.rows[epoch])
        augmented = values.pop("augmented")
        if self.images_per_second is not None:
            values["images_per_second"] = self.images_per_second
        summary = epoch_summary(values, augmented, tested, self.data)
        self.events.write(step=epoch, summary=summary)
        self._save()

    def _best_epoch(self):
        """The epoch with the best test accuracy, the first one of them; None without any row."""
        accuracies = {e: float(row.rpartition("test_acc: ")[2]) for e, row in self.rows.items()}
        return max(accuracies, key=accuracies.get, default=None)

    def _save(self):
        self.saved_at = time.monotonic()
        if not self.cluster.chief:
            return
        best = self._best_epoch()
        self.checkpoints.save(self.session, self._step(), best and best * self.epoch_steps)

    def finish(self):
        """Say where the result is."""
        self.cluster.wait_for_all()
        if not self.cluster.chief:
            return
        print(f"done: checkpoints in {self.model_folder}")
        if best := self._best_epoch():
            step = best * self.epoch_steps
            print(f"best by test accuracy: model.ckpt-{step} (epoch {best})")
        print(f"next: python {self.network}.py evaluate --run_dir={self.folder}")


def _source_code(network):
    """The text of all that decides what is computed: the script of `network` and `senet/`."""
    folder = pathlib.Path(__file__).parent.parent
    files = [folder.parent / f"{network}.py", *sorted(folder.rglob("*.py"))]
    return "".join(file.read_text() for file in files)


def _read_rows(path):
    """The whole rows of logs.txt, as {epoch: row}."""
    lines = path.read_text(errors="replace").splitlines(keepends=True) if path.exists() else []
    found = [re.fullmatch(r"epoch: (\d+)/\d+, .*, test_acc: \d\.\d{4}\n", line) for line in lines]
    return {int(row.group(1)): row.group() for row in found if row}


def _replace_text(path, text):
    """Write a text file so that it is either as before or complete."""
    aside = path.with_name(path.name + ".new")
    with writing(path):
        aside.write_text(text)
        aside.replace(path)
