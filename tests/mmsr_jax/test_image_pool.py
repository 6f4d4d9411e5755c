import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmsr_jax.image_pool import ImagePool, empty_pool, exchange

SHAPE = (2, 3, 1)
compiled_exchange = jax.jit(exchange)


def fakes(first: int, count: int) -> jax.Array:
    """Images that are told apart by their value: first, first + 1, …"""
    return jnp.broadcast_to(jnp.arange(first, first + count)[:, None, None, None], (count, *SHAPE))


def full_pool(size: int) -> ImagePool:
    pool, _ = compiled_exchange(empty_pool(size, SHAPE), fakes(0, size) * 1.0, jax.random.key(0))
    return pool


def values(images: jax.Array) -> list[int]:
    array = np.asarray(images)
    assert (array == array[:, :1, :1]).all(), "images were mixed"
    return [int(image[0, 0, 0]) for image in array]


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_fills_first_and_hands_the_fakes_through(batch: int) -> None:
    size, pool = 6, empty_pool(6, SHAPE)
    for step in range(size // batch):
        given = fakes(1 + step * batch, batch) * 1.0
        pool, seen = compiled_exchange(pool, given, jax.random.key(step))
        np.testing.assert_array_equal(seen, given)
        assert int(pool.filled) == (step + 1) * batch
    assert values(pool.images) == [1, 2, 3, 4, 5, 6]


def test_a_batch_larger_than_the_pool() -> None:
    pool, seen = compiled_exchange(empty_pool(3, SHAPE), fakes(1, 40) * 1.0, jax.random.key(0))
    handed = values(seen)
    assert handed[:3] == [1, 2, 3]
    assert handed != list(range(1, 41))
    assert set(handed) | set(values(pool.images)) == set(range(1, 41)), "an image was lost"
    assert int(pool.filled) == 3


def test_swaps_half_of_the_fakes_for_older_ones_from_all_slots() -> None:
    size, count = 5, 4000
    pool, seen = compiled_exchange(full_pool(size), fakes(size, count) * 1.0, jax.random.key(1))
    handed = np.array(values(seen))
    swapped = handed != np.arange(size, size + count)
    # four standard deviations of a fair coin
    assert abs(swapped.mean() - 0.5) < 4 * 0.5 / np.sqrt(count)
    assert (handed[swapped] < np.arange(size, size + count)[swapped]).all()
    # a slot is overwritten with probability 1/2 · 1/5 a step: images stay for ten steps on average
    age = (np.arange(size, size + count) - handed)[swapped]
    assert 8 < age.mean() < 12
    assert len(set(values(pool.images))) == size


def test_each_step_swaps_or_changes_nothing() -> None:
    pool = full_pool(4)
    swaps = 0
    for step in range(30):
        before, given = values(pool.images), 100 + step
        pool, seen = compiled_exchange(pool, fakes(given, 1) * 1.0, jax.random.key(step))
        (handed,), after = values(seen), values(pool.images)
        if handed == given:
            assert after == before
        else:
            swaps += 1
            assert [given if value == handed else value for value in before] == after
            assert given in after
    assert 5 < swaps < 25


def test_every_slot_is_used() -> None:
    size = 5
    pool, _ = compiled_exchange(full_pool(size), fakes(size, 4000) * 1.0, jax.random.key(2))
    assert min(values(pool.images)) >= size


def test_the_key_decides() -> None:
    pool, given = full_pool(5), fakes(5, 4000) * 1.0
    once, again, other = (compiled_exchange(pool, given, jax.random.key(key)) for key in (3, 3, 4))
    jax.tree.map(np.testing.assert_array_equal, once, again)
    assert values(once[1]) != values(other[1])
