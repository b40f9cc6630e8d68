"""The images that a library learns from, and those that it does not."""

from collections.abc import Iterator
from itertools import islice

from nni_blockswap.errors import DataError, TooFewError
from nni_blockswap.tasks import Batch, Task
from nni_blockswap.tasks.loader import LoaderTask


class Lessons:
    """Minibatches of a task's training set, in an order that ``seed`` draws.

    The first ones are held out: errors are measured there, without augmentation. The others are learned from, one a
    step, and again from the beginning when all were seen. Each is known by its number alone, so that a run that was
    killed goes on where it was.

    Args:
        task: where they come from.
        batch_size: images each.
        held_out: images to hold out, in whole minibatches; no more than a fifth of a set, but one minibatch at least.
        seed: of the order and of the augmentation.

    Raises:
        DataError: the training set has less than two minibatches, or an image cannot be read; or a sampler gives one
            more than once.
    """

    def __init__(self, task: Task, batch_size: int, held_out: int, seed: int) -> None:
        if isinstance(task, LoaderTask) and (sampler := task.sampler_with_replacement) is not None:
            raise DataError(
                f"errors are measured on images that nothing learns from, and the {sampler} of data draws images more "
                "than once; give a library a loader that draws each once, as with shuffle=True: it looks at no labels."
            )
        self._task, self._batch_size, self._seed = task, batch_size, seed
        self._stream: Iterator[Batch] = iter(())
        self._next = 0
        wanted = -(-held_out // batch_size)
        self._known = self._count(5 * wanted)
        if self._known < 2:
            raise DataError(
                f"the training set has one minibatch of {batch_size}, and there must be another one to measure errors "
                "on; lower the batch size."
            )
        self.held_out = max(1, min(wanted, self._known // 5))
        self._is_all_known = self._known < 5 * wanted

    def measured(self) -> Iterator[Batch]:
        """The minibatches that are held out."""
        return (self._minibatch(index, augment=False) for index in range(self.held_out))

    def learned(self, step: int) -> Batch:
        """The minibatch of ``step``, from 0."""
        index = self.held_out + step
        if not self._is_all_known and index >= self._known:
            self._known = self._count(2 * index)
            self._is_all_known = self._known < 2 * index
        if index >= self._known:
            index = self.held_out + step % (self._known - self.held_out)
        return self._minibatch(index, augment=True)

    def _count(self, most: int) -> int:
        """How many there are, at most ``most``: a task does not say."""
        if not isinstance(self._task, LoaderTask):
            self._minibatch(0, augment=False)  # raises where there is none at all
            return self._bisect(most)
        self._stream, self._next = iter(()), 0  # one pass at a time: somebody's own may share what they read
        found = sum(1 for _ in islice(self._task.minibatches(self._batch_size, seed=self._seed), most))
        if not found:
            self._minibatch(0, augment=False)  # raises, and says how many there are
        return found

    def _bisect(self, most: int) -> int:
        """The same where any minibatch can be had without those before it."""
        low, high = 1, most + 1
        while high - low > 1:
            middle = (low + high) // 2 if high - low <= most else most
            try:
                self._minibatch(middle - 1, augment=False)
            except TooFewError:
                high = middle
            else:
                low = middle
        return low

    def _minibatch(self, index: int, *, augment: bool) -> Batch:
        if isinstance(self._task, LoaderTask):
            found = self._in_turn(self._task, index)
            if found is not None:
                return found
        return self._task.minibatch(self._batch_size, seed=self._seed, index=index, augment=augment)

    def _in_turn(self, task: LoaderTask, index: int) -> Batch | None:
        """The same of batches that come one after the other: from where the last was read, if it lies ahead."""
        if index < self._next or not self._next:
            self._stream, self._next = task.minibatches(self._batch_size, seed=self._seed), 0
        ahead, self._next = index - self._next, index + 1
        return next(islice(self._stream, ahead, None), None)
