"""Permutation language modelling: what is drawn, and that splitting changes nothing."""

import numpy as np
import pytest
import tensorflow as tf

from configs.errors import DataError, UserError
from configs.schema import ModelConfig
from tfrecords.manifest import Split
from trainer.models import registry
from trainer.models.architecture import DEFAULT_OPTIONS
from trainer.models.layers.dropout import Dropout
from trainer.models.layers.noise import row_keys
from trainer.tasks import permutation_lm

XLNET = registry.get("xlnet")
TASK = permutation_lm.TASK
ROWS = 16


def keys(num_rows=ROWS, step=0, seed=0):
    return row_keys(seed, tf.constant(step), tf.range(num_rows))


def xlnet(num_layers=1, seed=1):
    config = ModelConfig(n_layer=num_layers, n_head=2, n_embd=16, n_positions=64)
    model = XLNET.build(XLNET.configure(config, 97))
    XLNET.initialize(model, seed)
    return model


def test_a_draw_is_what_the_paper_says():
    """Checked by hand for each pair of tokens, from the targets' order alone."""
    length = np.full(ROWS, 50)
    length[:4] = [1, 2, 7, 31]
    drawn = permutation_lm.draw(keys(), 50, tf.constant(length, tf.int32))
    unseen, targets = drawn.unseen.numpy(), drawn.targets.numpy()
    assert targets.shape == (ROWS, 8, 50)
    counts = targets.any(axis=2).sum(axis=1)
    assert counts.tolist() == [0, 1, 1, 5, *[8] * 12]
    for row in range(ROWS):
        places = [np.flatnonzero(slot).tolist() for slot in targets[row] if slot.any()]
        assert all(len(place) == 1 for place in places)
        places = [place for (place,) in places]
        assert places == sorted(set(places))
        assert all(place < length[row] for place in places)
        # Of two targets one comes first, and does not see the other, nor itself.
        hidden = unseen[row]
        turn = {p: hidden[[p] * len(places), places].sum() for p in places}
        assert sorted(turn.values()) == list(range(1, len(places) + 1))
        for i in range(50):
            for j in range(50):
                expected = j >= length[row]
                if j in turn:
                    expected = i not in turn or turn[i] >= turn[j]
                assert hidden[i, j] == expected, (row, i, j)


def test_draws_depend_on_seed_step_and_row_and_cover_all_places():
    length = tf.fill([200], 60)
    args = (60, length)
    first = permutation_lm.draw(keys(200), *args)
    for other, is_same in (
        (permutation_lm.draw(keys(200), *args), True),
        (permutation_lm.draw(keys(200, step=1), *args), False),
        (permutation_lm.draw(keys(200, seed=1), *args), False),
    ):
        same = tf.reduce_all(first.targets == other.targets, axis=[1, 2]).numpy()
        assert same.all() if is_same else same.mean() < 0.05
    compiled = tf.function(permutation_lm.draw, jit_compile=True)(keys(200), *args)
    np.testing.assert_array_equal(first.unseen, compiled.unseen)
    shares = first.targets.numpy().any(axis=1).mean(axis=0)  # of each place
    assert shares.mean() == pytest.approx(1 / 6)
    assert 0.03 < shares.min() <= shares.max() < 0.3  # fewest at the ends
    # Half of the targets stand beside another: single ones would in a fourth.
    is_target = first.targets.numpy().any(axis=1)
    beside = (is_target[:, 1:] & is_target[:, :-1]).sum() / is_target.sum()
    assert beside > 0.35


def batch(num_rows=ROWS):
    generator = np.random.default_rng(3)
    length = np.full(num_rows, 20)
    length[: num_rows // 4] = [0, 1, 5, 13][: num_rows // 4]
    values = {
        "tokens": generator.integers(0, 97, (num_rows, 20)),
        "length": length,
        "row": np.arange(num_rows),
    }
    return {name: value.astype(np.int32) for name, value in values.items()}


def test_the_loss_is_that_of_the_targets_alone():
    model, values = xlnet(), batch()
    drawn = permutation_lm.draw(keys(), 20, tf.constant(values["length"]))
    states = XLNET.target_states(
        model, values["tokens"], *drawn, DEFAULT_OPTIONS, Dropout()
    )
    logits = tf.matmul(states, XLNET.output_table(model), transpose_b=True)
    total = count = 0.0
    for row in range(ROWS):
        for slot in range(3):
            place = np.flatnonzero(drawn.targets[row, slot])
            if len(place):
                label = values["tokens"][row, place[0]]
                total -= float(tf.nn.log_softmax(logits[row, slot])[label])
                count += 1
    loss, weight = TASK.summed_loss(
        XLNET, model, values, DEFAULT_OPTIONS, Dropout(0.0, keys())
    )
    assert float(loss) == pytest.approx(total, rel=1e-5)
    assert float(weight) == count


def test_splitting_the_batch_changes_nothing():
    """Sums of loss, targets and gradients, with dropout, over any microbatches."""
    model, values = xlnet(), batch()
    table = model.by_name["transformer.word_embedding.weight"]

    def sums(rows):
        part = {name: tf.constant(value[rows]) for name, value in values.items()}
        dropout = Dropout(0.2, row_keys(0, tf.constant(5), part["row"]))
        with tf.GradientTape() as tape:
            loss, weight = TASK.summed_loss(
                XLNET, model, part, DEFAULT_OPTIONS, dropout
            )
        gradient = tf.convert_to_tensor(tape.gradient(loss, table))
        return np.concatenate([[loss, weight], np.ravel(gradient)])

    whole = sums(np.arange(ROWS))
    parts = sum(sums(rows) for rows in np.split(np.arange(ROWS), 4))
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-5)


def test_an_evaluation_draws_the_same_for_a_row_in_any_batch():
    model, values = xlnet(), batch()
    values["first"] = np.full(ROWS, 9, np.int32)

    def sums(rows):
        part = {name: tf.constant(value[rows]) for name, value in values.items()}
        found = TASK.evaluation_sums(XLNET, model, part, DEFAULT_OPTIONS)
        return np.array([float(value) for value in found.values()])

    whole = sums(np.arange(ROWS))
    parts = sum(sums(rows) for rows in np.split(np.arange(ROWS)[::-1], 4))
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    # Of 20 tokens, 11 are scored: one target of each whole row, and of the 13.
    assert whole[1] == 13
    drawn = permutation_lm.draw(keys(), 20, values["length"], values["first"])
    assert not drawn.targets.numpy()[:, :, :9].any()


def test_figures_do_not_pass_for_a_left_to_right_perplexity():
    counts = {"documents": 1, "words": 9, "bytes": 60, "tokens": 20, "stride": 8}
    sums = {"loss_sum": 6.0, "target_count": 3.0}
    figures = TASK.split_figures(sums, Split(**counts, shards=()))
    assert figures["loss"] == 2.0
    assert figures["permutation_perplexity"] == pytest.approx(np.exp(2))
    assert "not a left-to-right perplexity" in figures["objective"]
    published = {"token_perplexity", "word_perplexity", "bits_per_byte", "perplexity"}
    assert not published & set(figures)
    with pytest.raises(DataError, match="record of two tokens"):
        TASK.figures({"loss_sum": 0.0, "target_count": 0.0})


def test_gpt2_is_refused():
    gpt2 = registry.get("gpt2")
    with pytest.raises(UserError, match=r"such as xlnet. Received: .*=gpt2"):
        TASK.summed_loss(gpt2, None, batch(), DEFAULT_OPTIONS, Dropout(0.0, keys()))
