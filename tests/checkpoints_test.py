"""Checkpoints: what is damaged is named and never used."""

import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mixmo_jax.errors import InputError
from mixmo_jax.training.checkpoints import BestCheckpoint, Checkpoints, EpochProgress

LIKE = {"params": {"w": jnp.zeros((40, 50))}, "key": jax.random.key(0), "step": jnp.int32(0)}


def state_of(step):
    params = {"w": jnp.full((40, 50), 0.5) + step}
    return {"params": params, "key": jax.random.key(step), "step": jnp.int32(step)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the checkpoints of steps 10 and 20, to be copied."""
    folder = tmp_path_factory.mktemp("checkpoints") / "saved"
    with Checkpoints(folder) as checkpoints:
        for step in (10, 20):
            progress = EpochProgress(np.float32([0.1, step]), 1.5)
            checkpoints.save(step, state_of(step), progress)
    return folder


def files_of(folder):
    return sorted(f.relative_to(folder) for f in folder.rglob("*") if f.is_file())


def flip(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


HARMS = {
    "flipped": lambda file: file.write_bytes(flip(file.read_bytes())),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-2]),
    "emptied": lambda file: file.write_bytes(b""),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    "missing": lambda file: file.unlink(),
}


@pytest.mark.parametrize("harm", HARMS)
def test_older_one_is_used_whatever_file_of_the_newest_is_damaged(saved, tmp_path, capsys, harm):
    names = [name for name in files_of(saved / "20") if (saved / "20" / name).stat().st_size]
    assert len(names) > 5
    for i, name in enumerate(names):
        folder = tmp_path / str(i)
        shutil.copytree(saved, folder)
        HARMS[harm](folder / "20" / name)
        state, progress = Checkpoints(folder).restore(LIKE)
        assert int(state["step"]) == 10
        np.testing.assert_array_equal(progress.losses, np.float32([0.1, 10]))
        warning = capsys.readouterr().err
        assert f"{folder / '20'}: damaged: " in warning
        assert warning.endswith("; the checkpoint of step 10 is used instead\n")
        assert warning.count("\n") == 1


def test_none_intact_is_an_error(saved, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    for step in ("10", "20"):
        data = max((folder / step / "state" / "d").iterdir(), key=lambda file: file.stat().st_size)
        data.write_bytes(flip(data.read_bytes()))
    with pytest.raises(InputError, match=r"20: damaged: state/d/\w+ is not as it was") as error:
        Checkpoints(folder).restore(LIKE)
    assert str(error.value).endswith("holds no intact checkpoint")
    with pytest.raises(InputError, match="holds no checkpoint"):
        Checkpoints(tmp_path / "nothing").restore(LIKE)


def test_empty_or_strange_folders_are_damaged(saved, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    (folder / "30").mkdir()
    (folder / "20" / "more").write_text("")
    assert int(Checkpoints(folder).restore(LIKE)[0]["step"]) == 10
    first, second = capsys.readouterr().err.splitlines()
    assert "SHA256SUMS" in first
    assert "more is not in its list of files" in second


def test_another_form_is_named(saved):
    with pytest.raises(InputError, match="or it is of another network"):
        Checkpoints(saved).restore({**LIKE, "more": jnp.zeros(3)})
    with pytest.raises(InputError, match="or it is of another network"):
        Checkpoints(saved).restore_variables({"params": {"v": jnp.zeros(3)}})


def test_state_is_restored_bitwise_and_a_key_stays_a_key(saved):
    state, progress = Checkpoints(saved).restore(jax.eval_shape(lambda: LIKE))
    expected = jax.random.key_data(jax.random.key(20))
    np.testing.assert_array_equal(jax.random.key_data(state["key"]), expected)
    np.testing.assert_array_equal(state["params"]["w"], 20.5)
    assert progress.seconds == 1.5


def test_steps_of_an_unfinished_epoch_do_not_count(saved):
    """Two losses are kept, so step 20 is in an epoch that began after step 18."""
    assert Checkpoints(saved).restore_variables({"params": LIKE["params"]})[0] == 18


def test_newest_are_kept_and_abandoned_parts_removed(tmp_path):
    (tmp_path / ".5.part" / "state").mkdir(parents=True)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step is None
        for step in (1, 2, 3):
            checkpoints.save(step, state_of(step))
    assert sorted(f.name for f in tmp_path.iterdir()) == ["2", "3"]


def test_damaged_checkpoint_is_replaced(saved, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    (folder / "20" / "SHA256SUMS").write_text("")
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(20, state_of(20))
    assert int(Checkpoints(folder).restore(LIKE)[0]["step"]) == 20


def test_there_is_a_checkpoint_at_any_time_while_it_is_replaced(saved, tmp_path, monkeypatch):
    folder, remove = tmp_path / "copy", shutil.rmtree
    shutil.copytree(saved / "20", folder / "20")

    def check(*arguments, **options):
        assert int(Checkpoints(folder).restore(LIKE)[0]["step"]) == 20
        remove(*arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", check)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(20, state_of(20))
    assert [f.name for f in folder.iterdir()] == ["20"]


def test_checkpoints_of_older_versions_are_read(tmp_path):
    """Orbax's own manager wrote them, without checksums."""
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(7, args=ocp.args.StandardSave(state_of(7)))
    state, progress = Checkpoints(tmp_path).restore(LIKE)
    assert (int(state["step"]), len(progress.losses)) == (7, 0)
    assert Checkpoints(tmp_path).restore_variables({"params": LIKE["params"]})[0] == 7


def test_best_checkpoint_is_verified(tmp_path, capsys):
    with BestCheckpoint(tmp_path) as best:
        best.verify()  # nothing is there yet
        for step, score in ((1, 0.5), (2, 0.7)):
            best.offer(step, state_of(step), score)
    (tmp_path / "2" / "epoch.json").write_text("")
    with BestCheckpoint(tmp_path) as best:
        best.verify()
        assert best.steps == [1]
    assert "2: damaged: epoch.json" in capsys.readouterr().err
    (tmp_path / "1" / "epoch.json").write_text("")
    with BestCheckpoint(tmp_path) as best, pytest.raises(InputError, match="no intact checkpoint"):
        best.verify()
    assert best.score == -math.inf


def test_failed_save_is_raised_and_what_was_there_is_intact(saved, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)

    def fail(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

    monkeypatch.setattr(ocp.Checkpointer, "save", fail)
    message = r"30\S* cannot be written: RESOURCE"
    with pytest.raises(InputError, match=message), Checkpoints(folder) as checkpoints:
        checkpoints.save(30, state_of(30))
    assert sorted(f.name for f in folder.iterdir()) == ["10", "20"]
    assert int(Checkpoints(folder).restore(LIKE)[0]["step"]) == 20


def test_full_disk_is_noticed_before_anything_is_written(saved, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    message = "1: cannot be written: No space left on device"
    with pytest.raises(InputError, match=message), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state_of(1))
    assert list(tmp_path.iterdir()) == []


def test_keys_are_read_whatever_generator_jax_prefers(saved):
    with jax.default_prng_impl("rbg"):
        state, _ = Checkpoints(saved).restore(LIKE)
    assert state["key"] == jax.random.key(20)
