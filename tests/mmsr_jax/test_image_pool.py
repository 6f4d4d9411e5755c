import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmsr_jax.image_pool import ImagePool, empty_pool, exchange

SHAPE = (2, 3, 1)
compiled_exchange = jax.jit(exchange)


def fakes(*told_apart_by: int) -> jax.Array:
    """Images of one value each."""
    numbers = jnp.array(told_apart_by, jnp.float32)
    return jnp.broadcast_to(numbers[:, None, None, None], (len(numbers), *SHAPE))


def values(images: jax.Array) -> np.ndarray:
    array = np.asarray(images)
    assert (array == array[..., :1, :1, :]).all(), "images were mixed"
    return array[..., 0, 0, 0].astype(int)


def given_in_turn(
    pool: ImagePool, rows: int, steps: int, seed: int = 0
) -> tuple[ImagePool, np.ndarray]:
    """The pool after `steps` batches of `rows`, whose images are numbered, and (steps, rows) seen.

    Image number k·rows + r is the fake of row r in step k.
    """

    def step(pool: ImagePool, number: jax.Array) -> tuple[ImagePool, jax.Array]:
        batch = jnp.broadcast_to(
            (number * rows + jnp.arange(rows, dtype=jnp.float32))[:, None, None, None],
            (rows, *SHAPE),
        )
        pool, seen = exchange(pool, batch, jax.random.fold_in(jax.random.key(seed), number))
        return pool, seen

    pool, seen = jax.jit(lambda pool: jax.lax.scan(step, pool, jnp.arange(steps)))(pool)
    return pool, values(seen)


@pytest.mark.parametrize(("total", "rows", "size"), [(6, 1, 6), (6, 2, 3), (7, 2, 4), (3, 40, 1)])
def test_fills_first_and_hands_the_fakes_through(total: int, rows: int, size: int) -> None:
    pool, seen = given_in_turn(empty_pool(total, rows, SHAPE), rows, size)
    given = np.arange(size * rows).reshape(size, rows)
    np.testing.assert_array_equal(seen, given)
    np.testing.assert_array_equal(values(pool.images), given.T)
    assert int(pool.filled) == size


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_swap_half_of_their_fakes_for_older_ones_from_all_slots(rows: int) -> None:
    size, steps = 5, 4000
    pool, seen = given_in_turn(empty_pool(size * rows, rows, SHAPE), rows, steps)
    given = np.arange(steps * rows).reshape(steps, rows)
    assert (seen % rows == np.arange(rows)).all(), "a row saw another row's past"
    for row in range(rows):
        handed, mine = seen[size:, row] // rows, given[size:, row] // rows
        swapped = handed != mine
        # four standard deviations of a fair coin
        assert abs(swapped.mean() - 0.5) < 4 * 0.5 / np.sqrt(steps - size)
        assert (handed[swapped] < mine[swapped]).all()
        # a slot is overwritten with probability 1/2 · 1/5 a step: ten steps on average
        assert 8 < (mine - handed)[swapped].mean() < 12
        kept = values(pool.images)[row]
        assert len(set(kept)) == size
        assert kept.min() >= size * rows, "a slot is never used"
    if rows > 1:
        assert len({tuple(seen[:, row] // rows) for row in range(rows)}) == rows, "rows draw alike"


def test_each_step_swaps_or_changes_nothing() -> None:
    pool, _ = given_in_turn(empty_pool(4, 1, SHAPE), 1, 4)
    swaps = 0
    for step in range(30):
        before, given = values(pool.images)[0].tolist(), 100 + step
        pool, seen = compiled_exchange(pool, fakes(given), jax.random.key(step))
        (handed,), after = values(seen), values(pool.images)[0].tolist()
        if handed == given:
            assert after == before
        else:
            swaps += 1
            assert [given if value == handed else value for value in before] == after
            assert given in after
    assert 5 < swaps < 25


def test_the_key_decides() -> None:
    pool, _ = given_in_turn(empty_pool(50, 10, SHAPE), 10, 5)
    given = fakes(*range(100, 110))
    once, again, other = (compiled_exchange(pool, given, jax.random.key(key)) for key in (3, 3, 4))
    jax.tree.map(np.testing.assert_array_equal, once, again)
    assert values(once[1]).tolist() != values(other[1]).tolist()
