"""A training run: everything that happens around the steps of the training loop."""

import contextlib
import inspect
import json
import math
import os
import pathlib
import shlex
import signal
import time

from senet.data.datasets import batches, epoch_order, load_dataset, steps_per_epoch
from senet.engine.compat import tf
from senet.engine.devices import compute_dtype
from senet.engine.errors import Failure
from senet.engine.micro_batches import check_micro_batches
from senet.engine.signals import Stopped, StopSignals
from senet.engine.text import duration
from senet.evaluation import evaluate
from senet.run.checkpoints import Checkpoints
from senet.run.cluster import Cluster
from senet.run.console import ProgressBar, say, start_lines
from senet.run.events import (
    EventFile,
    epoch_summary,
    graph_for_tensorboard,
    scalar_summary,
    start_summary,
    test_summary,
)
from senet.run.folder import RunFolder
from senet.run.rows import best_epoch
from senet.run.weights import load_weights

POINT_STEPS = 50  # training steps between points of TensorBoard's curves within an epoch


class Run:
    """A new or resumed run in `run_dir`; use it in a `with` statement, and build the graph inside.
    `network` is the class that a script trains. The Dataset is in the attribute `data`. With
    several hosts, only the chief writes files.

    Raises Failure or HyperparameterError if a device does not exist, if another process is training
    the run, if its checkpoints were made with incompatible hyperparameters, if the data cannot be
    loaded, or if a micro-batch would have too few images."""

    def __init__(self, hyperparameters, network):
        self.hyperparameters = hp = hyperparameters
        self.network = network
        self.epochs_done = 0
        self.result = {}  # of the last step
        self.images_per_second = None  # in this epoch
        self.saved_at = time.monotonic()
        self.folder = RunFolder(hyperparameters)
        self.folder.check_training_state()
        self.signals = StopSignals()
        self.cluster = Cluster(hyperparameters, self.signals)
        self.data = load_dataset(hp.dataset, hp.data_dir, hp.image_size, hp.validation)
        self.note = ""  # to print at the start
        if hp.initial_checkpoint:
            self._set_up_fine_tuning()
            hp = self.hyperparameters
        self.epoch_steps = steps_per_epoch(self.data.train, hp.batch_size)
        replicas = self.cluster.strategy.num_replicas_in_sync
        check_micro_batches(len(self.data.train.labels), self.epoch_steps, hp, replicas)
        # What tests the network after an epoch:
        self.split = "val" if self.data.validation else "test"

    def _set_up_fine_tuning(self):
        hp = self.hyperparameters
        images = len(self.data.train.labels)
        tuned = hp.for_fine_tuning(images)
        self.hyperparameters = self.folder.hyperparameters = tuned
        before = hp.as_dict()
        changed = [f"{n} {v}" for n, v in tuned.as_dict().items() if v != before[n]]
        if changed:
            self.note = f"fine-tuning: {', '.join(changed)} (options override them)"

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            if self.cluster.chief:
                stack.enter_context(self.folder)
            stack.enter_context(self.signals)
            stack.enter_context(tf.Graph().as_default())
            stack.enter_context(self.cluster)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *error):
        return self._open.__exit__(*error)

    def start(self, graph):
        """Return a session whose variables have the values of the newest checkpoint or, in a new
        run, of `initial_checkpoint` or the initializers. Print the startup lines. `graph` is the
        Graph of the training loop."""
        hp = self.hyperparameters
        hp.check_effect()
        self.graph = graph
        for name, value in (*graph.train_step.items(), *graph.epoch_end.items()):
            # Operations have no shape; the "images" are shown as a page.
            shape = getattr(value, "shape", tf.TensorShape([]))
            if name != "images" and shape.rank:
                raise Failure(f"{name} in train_step or epoch_end must be a scalar, got {shape}")
        checksums = self.data.checksums()
        self.checkpoints = Checkpoints(
            self.folder.model,
            graph.test_outputs,
            hp.network(),
            checksums,
            self.data.label_names,
        )
        self.session = self._open.enter_context(self.cluster.session())
        self.session.run(tf.global_variables_initializer())
        # Settings of the machine may differ, as may the path of a folder of images.
        compared = {n: v for n, v in hp.portable().items() if n != "dataset"}
        self.cluster.check_same(
            hyperparameters=json.dumps(compared),
            code=_source_code(self.network),
            images=repr(checksums),
            precision=compute_dtype(hp.mixed_precision).name,
        )
        checkpoint = self.checkpoints.restore(self.session)
        self.cluster.check_same(checkpoint=checkpoint)
        resumed = bool(checkpoint)
        step = self._step()
        # An epoch is complete when its row is written; without it, the epoch is tested again.
        epochs_done, steps_beyond = divmod(step, self.epoch_steps)
        if epochs_done and not steps_beyond and epochs_done not in self.folder.rows:
            epochs_done -= 1
        (self.epochs_done,) = self.cluster.from_chief(epochs_done)  # only the chief has the rows
        weights = self._load_weights() if hp.initial_checkpoint and not resumed else ""
        self.saved_at = time.monotonic()
        if self.cluster.chief:
            self._open_logs(step)
            self._print_start(resumed, step, weights)
        return self.session

    def _open_logs(self, step):
        self.folder.write_hyperparameters()
        self.folder.keep_rows(self.epochs_done)
        self.events = self._open.enter_context(EventFile(self.folder.path))
        self.test_events = self._open.enter_context(EventFile(self.folder.path / "test"))
        # Make TensorBoard discard the earlier events of all steps and tests that follow.
        untested = step == (self.epochs_done + 1) * self.epoch_steps
        start = tf.SessionLog(status=tf.SessionLog.START)
        for events in self.events, self.test_events:
            events.write(step=step + 1 - untested, session_log=start)
        if not step:
            graph = graph_for_tensorboard(self.graph.test_outputs["probabilities"])
            self.events.write(graph_def=graph)
        # A resumed run may change some hyperparameters.
        summary = start_summary(self.network, self.hyperparameters)
        self.events.write(step=step, summary=summary)

    def _load_weights(self):
        """Load the matching variables of `initial_checkpoint`. Return the line that lists them."""
        path = self.hyperparameters.initial_checkpoint
        line, index = load_weights(
            self.session, path, self.graph.test_outputs, self.data.label_names
        )
        self.cluster.check_same(initial_checkpoint=index)
        return line

    def _print_start(self, resumed, step, weights):
        hp = self.hyperparameters
        total_steps = hp.total_epochs * self.epoch_steps
        state = f"resuming at step {step:,} of {total_steps:,}" if resumed else "new"
        say(start_lines(self.network, self.data, self.cluster.strategy, hp, state))
        for line in filter(None, [weights, self.note]):
            say(line)
        if self.epochs_done == hp.total_epochs:
            say("already finished; use a larger --total_epochs to continue")

    def _step(self):
        return int(self.session.run(tf.train.get_global_step()))

    def epochs(self):
        """Return the numbers of the epochs that remain."""
        return range(self.epochs_done + 1, self.hyperparameters.total_epochs + 1)

    def train_batches(self, epoch):
        """Yield the remaining batches of an epoch, in the epoch's order. Between batches,
        save a checkpoint if one is due, and stop on a signal."""
        hp = self.hyperparameters
        data = self.data.train
        # A resumed epoch starts after the steps that are done.
        steps_done = self._step()
        first = steps_done - (epoch - 1) * self.epoch_steps
        remaining = batches(data, hp.batch_size, epoch_order(data, hp.seed, epoch), first)
        done = len(data.labels) * first // self.epoch_steps
        text = f"epoch {epoch}/{hp.total_epochs}"
        self.result = {}
        self.images_per_second = None
        # The first step is not timed, since it may include set-up.
        started = None
        seen = 0
        later = (hp.total_epochs - epoch) * len(data.labels)
        watched = self._watched(remaining, len(data.labels), text, done, later)
        for step, batch in enumerate(watched, steps_done + 1):
            if self.images_per_second:
                step_seconds = len(batch.labels) / self.images_per_second
                self.signals.step_end = time.monotonic() + step_seconds
            yield batch
            if started is None:
                started = time.perf_counter()
            else:
                seen += len(batch.labels)
                self.images_per_second = seen / (time.perf_counter() - started)
            # The epoch's last step is written by end_epoch.
            if self.cluster.chief and step % POINT_STEPS == 0 and step % self.epoch_steps:
                self.folder.keep_lock()
                self.events.write(step=step, summary=scalar_summary(self._last_step_scalars()))

    def _test(self):
        """Return the Evaluation of the test set. Between batches, save a checkpoint if one is due,
        and stop on a signal."""
        hp = self.hyperparameters
        data = self.data.tested
        all_batches = batches(data, hp.micro_batch_size or hp.batch_size)
        watched = self._watched(all_batches, len(data.labels), "testing")
        return evaluate(self.session, self.graph.test_outputs, self.graph.inputs, watched)

    def _watched(self, batch_iterator, images, text, done=0, later=0):
        with ProgressBar(text, images, done, later, visible=self.cluster.chief) as self.bar:
            self._between_steps()
            for batch in batch_iterator:
                yield batch
                self.bar.update(len(batch.labels))
                self._between_steps()

    def _between_steps(self):
        received = self.signals.received
        stop = self.cluster.stop(received)
        if stop or time.monotonic() - self.saved_at > 60 * self.hyperparameters.save_minutes:
            self._save()
        if stop:
            received = received or signal.SIGTERM  # another worker received one
            raise Stopped(
                received,
                f"stopped by {received.name} and saved after step {self._step():,}; "
                f"run the same command to resume",
            )

    def end_step(self, result):
        """Show the scalars `result` of a step in the progress bar; TensorBoard gets those of every
        50th step and of an epoch's last one. Raises Failure if the loss is not finite, or if
        the learning rate is negative."""
        rate = result.get("learning_rate", math.nan)
        if rate < 0:
            raise Failure(
                f"the learning rate of step {self._step():,} is {rate:.4g}; fix the schedule and "
                f"restart in another --run_dir"
            )
        if not math.isfinite(result["loss"]):
            raise Failure(
                f"the loss is not finite at step {self._step():,} (learning rate {rate:.4g}); the "
                f"step was not saved; restart in another --run_dir with a lower learning rate"
            )
        self.result = result
        text = f"loss {result['loss']:.4f}, accuracy {result['acc']:.4f}"
        self.bar.set_postfix_str(text, refresh=False)

    def end_epoch(self, epoch):
        """Test the network if that is due, write the epoch's row and its summary for TensorBoard,
        save a checkpoint, then print the row."""
        hp = self.hyperparameters
        batch = self.data.train.sample(hp.batch_size)
        values = self.session.run(self.graph.epoch_end, self.graph.feed(batch))
        due = epoch % hp.test_every == 0 or epoch == hp.total_epochs
        evaluation = self._test() if due else None
        if not self.cluster.chief:
            return
        images = values.pop("images")
        row = {name: values.pop(name) for name in ("train_loss", "train_acc")}
        if evaluation:
            row |= {f"{self.split}_{name}": v for name, v in evaluation.metrics.items()}
        line = self.folder.add_row(epoch, row)
        scalars = self._last_step_scalars() | row | values
        step = epoch * self.epoch_steps
        tested = {name: scalars.pop(name) for name in row if name.startswith(self.split)}
        self.events.write(step=step, summary=epoch_summary(scalars, images))
        if evaluation:
            summary = test_summary(tested, evaluation, self.data)
            self.test_events.write(step=step, summary=summary)
        self._save()
        say(line + self._epoch_notes(scalars))

    def _epoch_notes(self, scalars):
        """Return the end of an epoch's line on the console: time, speed and learning rate."""
        speed = scalars.get("images_per_second")
        if not speed:  # a resumed epoch that had no steps left
            return ""
        time_taken = duration(len(self.data.train.labels) / speed)
        rate = scalars.get("learning_rate", math.nan)
        return f" ({time_taken}, {speed:,.3g} images/s, rate {rate:.2g})"

    def _last_step_scalars(self):
        """Return the scalars of the epoch's last step, {} if a resumed epoch had no steps left."""
        if self.images_per_second is None:
            return self.result
        return self.result | {"images_per_second": self.images_per_second}

    def _save(self):
        self.saved_at = time.monotonic()
        if self.cluster.chief:
            self.folder.keep_lock()
            best = best_epoch(self.folder.rows)
            self.checkpoints.save(self.session, self._step(), best and best * self.epoch_steps)

    def finish(self):
        """Wait for all workers, then print the location of the results and the next command."""
        self.cluster.wait_for_all()
        if not self.cluster.chief:
            return
        say(f"done: checkpoints in {self.folder.model}")
        best = best_epoch(self.folder.rows)
        if best and best != self.hyperparameters.total_epochs:
            say(f"best by {self.split}_acc: epoch {best}; to use it, add --checkpoint=best")
        run_dir = shlex.quote(str(self.folder.path))
        script = shlex.quote(os.path.relpath(inspect.getfile(self.network)))
        say(f"next: python {script} evaluate --run_dir={run_dir}")


def _source_code(network):
    """Return the source code of the script that defines `network`, and of `senet/`."""
    package = pathlib.Path(__file__).parent.parent
    files = [pathlib.Path(inspect.getfile(network)), *sorted(package.rglob("*.py"))]
    return "".join(file.read_text("utf-8") for file in files)
