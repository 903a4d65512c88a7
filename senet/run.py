"""A training run: its folder, checkpoints, logs and what the person at the terminal sees.

run_dir/hyperparameters.json     what the run was started with
run_dir/model/                   checkpoints
run_dir/logs.txt                 one row an epoch
run_dir/logs/                    the same for TensorBoard
"""

import dataclasses
import json
import pathlib
import time

from tqdm import tqdm

from senet.compat import tf
from senet.devices import describe_devices
from senet.errors import Failure

ROW = (
    "epoch: {epoch}/{total_epochs}, train_loss: {train_loss:.4f}, train_acc: {train_accuracy:.4f}, "
    "test_loss: {test_loss:.4f}, test_acc: {test_accuracy:.4f}"
)
# Fields that say where a run finds things and how long it is, not what it computes.
MAY_CHANGE = {"data_dir", "run_dir", "allow_soft_placement", "total_epochs"}


class Run:
    """One run in its `run_dir`, new or going on; use it in a `with` statement.

    Raises Failure if the folder holds a run with hyperparameters that compute something else."""

    def __init__(self, hyperparameters):
        self.hyperparameters = hyperparameters
        self.folder = pathlib.Path(hyperparameters.run_dir)
        self.model_folder = self.folder / "model"
        self.log_folder = self.folder / "logs"
        self.rows = self.folder / "logs.txt"
        self.images_per_second = None
        self.saver = self.writer = self.bar = None

    def __enter__(self):
        self.model_folder.mkdir(parents=True, exist_ok=True)
        settings = self.folder / "hyperparameters.json"
        if tf.train.latest_checkpoint(str(self.model_folder)):
            self._compare(json.loads(settings.read_text()))
        text = json.dumps(dataclasses.asdict(self.hyperparameters), indent=2)
        _replace_text(settings, text + "\n")
        return self

    def __exit__(self, *_):
        if self.writer:
            self.writer.close()

    def _compare(self, earlier):
        """Refuse to go on with what was started under other hyperparameters."""
        now = dataclasses.asdict(self.hyperparameters)
        changes = [
            f"{name} was {earlier.get(name)}, now {value}"
            for name, value in now.items()
            if name not in MAY_CHANGE and earlier.get(name) != value
        ]
        if changes:
            raise Failure(
                f"{self.folder} holds a run with other hyperparameters ({'; '.join(changes)}): "
                f"give the earlier values to go on with it, or another --run_dir to start afresh"
            )

    def start(self, session, network, data):
        """Give the variables of `session` the values of the newest checkpoint, or their first
        ones; say what will be trained, and where to watch it. Returns the step to go on with."""
        self.saver = tf.train.Saver(max_to_keep=3)
        checkpoint = tf.train.latest_checkpoint(str(self.model_folder))
        session.run(tf.global_variables_initializer())
        if checkpoint:
            self.saver.restore(session, checkpoint)
        step = int(session.run(tf.train.get_global_step()))
        epoch_steps = -(-len(data.train.labels) // self.hyperparameters.batch_size)
        epochs_done = step // epoch_steps

        # A row whose checkpoint was not written any more will be computed again.
        rows = self.rows.read_text().splitlines(keepends=True) if self.rows.exists() else []
        _replace_text(self.rows, "".join(rows[:epochs_done]))
        self.writer = tf.summary.FileWriter(str(self.log_folder))
        restart = tf.SessionLog(status=tf.SessionLog.START)
        self.writer.add_session_log(restart, global_step=epochs_done + 1)
        if not checkpoint:
            self.writer.add_graph(session.graph)

        parameters = sum(v.shape.num_elements() for v in tf.trainable_variables())
        went = f"goes on after epoch {epochs_done}" if checkpoint else "new"
        print(
            f"network: {network}, {parameters:,} trainable parameters\n"
            f"data: {data.name}, {len(data.train.labels):,} training and "
            f"{len(data.test.labels):,} test pictures in {len(data.label_names)} classes\n"
            f"device: {describe_devices()}\n"
            f"run: {self.folder} ({went}); to watch it: tensorboard --logdir {self.folder}",
            flush=True,
        )
        return step

    def progress(self, todo, epoch, pictures):
        """Yield the batches `todo` of an epoch that has so many `pictures`, with a progress line
        on a terminal; measures images/s, the first batch excluded since it includes set-up."""
        total_epochs = self.hyperparameters.total_epochs
        with tqdm(
            total=pictures,
            desc=f"epoch {epoch}/{total_epochs}",
            unit=" images",
            leave=False,
            disable=None,
            ncols=100,
            bar_format="{desc} {percentage:3.0f}% |{bar}| {rate_fmt}, {remaining} left{postfix}",
        ) as self.bar:
            measured, started = 0, None
            for batch in todo:
                yield batch
                self.bar.update(len(batch.labels))
                if started is None:
                    started = time.perf_counter()
                else:
                    measured += len(batch.labels)
            self.images_per_second = measured / (time.perf_counter() - started)

    def show(self, loss, accuracy):
        """Show the means of the epoch so far on the progress line."""
        self.bar.set_postfix_str(f"loss {loss:.4f}, accuracy {accuracy:.4f}", refresh=False)

    def end_epoch(self, epoch, **values):
        """Print the row of an epoch, and keep it in logs.txt and, with what else is in `values`,
        for TensorBoard."""
        row = ROW.format(epoch=epoch, total_epochs=self.hyperparameters.total_epochs, **values)
        print(row, flush=True)
        with self.rows.open("a") as rows:
            rows.write(row + "\n")
        values["images_per_second"] = self.images_per_second
        summary = tf.Summary()
        for tag, value in values.items():
            summary.value.add(tag=tag, simple_value=value)
        self.writer.add_summary(summary, epoch)
        self.writer.flush()

    def save(self, session, step):
        """Write a checkpoint of everything the run's future depends on."""
        path = str(self.model_folder / "model.ckpt")
        self.saver.save(session, path, global_step=step, write_meta_graph=False)

    def finish(self):
        """Say that the run is complete, and what can be done next."""
        print(
            f"done: {self.hyperparameters.total_epochs} epochs; checkpoints in {self.model_folder}"
        )


def _replace_text(path, text):
    """Write a text file so that it is either as before or complete."""
    aside = path.with_name(path.name + ".new")
    aside.write_text(text)
    aside.replace(path)
