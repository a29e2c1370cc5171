"""Checkpoints: damaged ones are named and never used, and the best one is never lost."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mixmo_jax.errors import InputError
from mixmo_jax.training.checkpoints import Checkpoints, EpochProgress, _write_checksums

LIKE = {"params": {"w": jnp.zeros((40, 50))}, "key": jax.random.key(0), "step": jnp.int32(0)}


def state_of(step):
    params = {"w": jnp.full((40, 50), 0.5) + step}
    return {"params": params, "key": jax.random.key(step), "step": jnp.int32(step)}


def step_of(folder):
    return int(Checkpoints(folder).restore(LIKE)[0]["step"])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the checkpoints of steps 10 and 20, to be copied."""
    folder = tmp_path_factory.mktemp("checkpoints") / "saved"
    with Checkpoints(folder) as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, state_of(step), EpochProgress(np.float32([0.1, step]), 1.5))
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


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
def test_older_one_is_used_whatever_file_of_the_newest_is_damaged(copied, capsys, harm):
    files = [f for f in (copied / "20").rglob("*") if f.is_file() and f.stat().st_size]
    assert len(files) > 5
    for file in files:
        content = file.read_bytes()
        HARMS[harm](file)
        state, progress = Checkpoints(copied).restore(LIKE)
        assert int(state["step"]) == 10
        np.testing.assert_array_equal(progress.losses, np.float32([0.1, 10]))
        (warning,) = capsys.readouterr().err.splitlines()
        name = file.relative_to(copied / "20").as_posix()
        assert f"{copied / '20'}: damaged: " in warning
        assert name in warning or name == "SHA256SUMS"  # it names others, if it is damaged
        assert warning.endswith("; the checkpoint of step 10 is used instead")
        file.write_bytes(content)


def test_none_intact_is_an_error(copied, tmp_path):
    for step in ("10", "20"):
        HARMS["flipped"](next((copied / step / "state" / "d").iterdir()))
    with pytest.raises(InputError, match=r"20: damaged: state/d/.*holds no intact checkpoint"):
        Checkpoints(copied).restore(LIKE)
    with pytest.raises(InputError, match="holds no checkpoint"):
        Checkpoints(tmp_path / "nothing").restore(LIKE)


def test_other_files_are_ignored_and_an_empty_folder_is_damaged(copied, capsys):
    (copied / "20" / ".DS_Store").write_text("")
    (copied / "30").mkdir()
    assert step_of(copied) == 20
    assert f"{copied / '30'}: damaged: SHA256SUMS" in capsys.readouterr().err


def test_another_model_is_named(saved):
    for restore in (
        lambda: Checkpoints(saved).restore({**LIKE, "more": jnp.zeros(3)}),
        lambda: Checkpoints(saved).restore({**LIKE, "params": {"w": jnp.zeros((3, 50))}}),
        lambda: Checkpoints(saved).restore_variables({"params": {"v": jnp.zeros(3)}}, best=False),
    ):
        with pytest.raises(InputError, match="corrupt, or saved by a different model"):
            restore()


def test_state_is_restored_bitwise_whatever_generator_jax_prefers(saved):
    with jax.default_prng_impl("rbg"):
        state, progress = Checkpoints(saved).restore(LIKE)
    assert state["key"] == jax.random.key(20)
    np.testing.assert_array_equal(state["params"]["w"], 20.5)
    assert progress.seconds == 1.5
    assert Checkpoints(saved).restore(jax.eval_shape(lambda: LIKE))[0]["key"] == state["key"]


def test_steps_of_an_unfinished_epoch_do_not_count(saved):
    """Two losses are kept, so step 20 is in an epoch that began after step 18."""
    variables = {"params": LIKE["params"]}
    assert Checkpoints(saved).restore_variables(variables, best=True)[0] == 18


def test_newest_are_kept_and_abandoned_parts_removed(tmp_path):
    (tmp_path / ".5.part" / "state").mkdir(parents=True)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step is checkpoints.best_step is checkpoints.best_score is None
        for step in (1, 2, 3):
            checkpoints.save(step, state_of(step))
    assert sorted(f.name for f in tmp_path.iterdir()) == ["2", "3"]


def test_a_step_may_be_saved_again(copied):
    """As after a stop at the end of an epoch, before its evaluation."""
    with Checkpoints(copied) as checkpoints:
        checkpoints.save(20, state_of(20), score=0.5)
    state, progress = Checkpoints(copied).restore(LIKE)
    assert (int(state["step"]), len(progress.losses)) == (20, 0)
    assert Checkpoints(copied).best_score == 0.5
    assert sorted(f.name for f in copied.iterdir()) == ["10", "20"]


@pytest.mark.parametrize("seed", range(3))
def test_the_best_state_up_to_wherever_a_run_resumes_is_never_lost(tmp_path, seed):
    """Epochs with random scores; crashes after which the newest checkpoint may be damaged."""
    chance, step, scores = random.Random(seed), 0, {}
    for _ in range(4):
        with Checkpoints(tmp_path) as checkpoints:
            for _ in range(chance.randint(1, 5)):
                step += 1
                scores[step] = chance.randint(0, 9) / 10
                best = checkpoints.best_score
                if best is None or scores[step] >= best or chance.random() < 0.4:
                    checkpoints.save(step, state_of(step), score=scores[step])
        if chance.random() < 0.6 and len(Checkpoints(tmp_path).steps) > 1:
            HARMS["flipped"](tmp_path / str(Checkpoints(tmp_path).latest_step) / "epoch.json")
        checkpoints = Checkpoints(tmp_path)
        step = int(checkpoints.restore(LIKE)[0]["step"])
        checkpoints.delete_after(step)
        scores = {s: score for s, score in scores.items() if s <= step}
        expected = max(scores, key=lambda s: (scores[s], s))  # the later of equals
        for opened in (checkpoints, Checkpoints(tmp_path)):
            assert opened.latest_step == step
            assert (opened.best_step, opened.best_score) == (expected, scores[expected])
        variables = {"params": LIKE["params"]}
        found, restored = checkpoints.restore_variables(variables, best=True)
        assert found == expected
        np.testing.assert_array_equal(restored["params"]["w"], expected + 0.5)


def test_damaged_best_is_named_and_the_next_best_takes_its_place(tmp_path, capsys):
    with Checkpoints(tmp_path) as checkpoints:
        for step, score in ((1, 0.7), (2, 0.3), (3, 0.5)):
            checkpoints.save(step, state_of(step), score=score)
    HARMS["flipped"](tmp_path / "1" / "epoch.json")
    variables = {"params": LIKE["params"]}
    assert Checkpoints(tmp_path).restore_variables(variables, best=True)[0] == 3
    assert "1: damaged: epoch.json" in capsys.readouterr().err
    checkpoints = Checkpoints(tmp_path)
    checkpoints.delete_after(3)  # as when training resumes
    assert "1: damaged: epoch.json has changed; it is deleted" in capsys.readouterr().err
    assert (checkpoints.steps, checkpoints.best_step) == ([2, 3], 3)


def test_checkpoints_of_version_0_1_are_read(tmp_path):
    """Orbax's own manager wrote them, without checksums."""
    for name, steps in {"checkpoints": (7, 14), "best_checkpoint": (7,)}.items():
        with ocp.CheckpointManager(tmp_path / name) as manager:
            for step in steps:
                manager.save(step, args=ocp.args.StandardSave(state_of(step)))
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    state, progress = checkpoints.restore(LIKE)
    assert (int(state["step"]), len(progress.losses)) == (14, 0)
    assert checkpoints.restore_variables({"params": LIKE["params"]}, best=True)[0] == 7


def test_runs_of_version_0_2_are_continued(saved, tmp_path):
    """The best state was in another folder, and its score in the metrics of the run."""
    for name, step in (("checkpoints", 10), ("checkpoints", 20), ("best_checkpoint", 10)):
        folder = shutil.copytree(saved / str(step), tmp_path / name / str(step))
        (folder / "SHA256SUMS").unlink()
        (folder / "epoch.json").write_text('{"losses": [], "seconds": 0.0}')
        _write_checksums(folder)
    scores = [(10, 0.8), (20, 0.6)]
    lines = [json.dumps({"step": step, "validation": {"accuracy": x}}) + "\n" for step, x in scores]
    (tmp_path / "metrics.jsonl").write_text("".join([*lines, '{"step": 30, "loss": 1.0}\n']))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert (step_of(tmp_path / "checkpoints"), checkpoints.best_score) == (20, 0.8)
        for step, score in ((30, 0.7), (40, 0.7)):
            checkpoints.save(step, state_of(step), score=score)
        checkpoints.wait()
        variables = {"params": LIKE["params"]}
        assert checkpoints.restore_variables(variables, best=True)[0] == 10
        for step in (50, 60):
            checkpoints.save(step, state_of(step), score=0.9)
    assert Checkpoints(tmp_path / "checkpoints").best_step == 60
    assert list((tmp_path / "best_checkpoint").iterdir()) == []


def test_failed_save_is_raised_and_the_older_ones_are_intact(copied, monkeypatch):
    def fail(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

    monkeypatch.setattr(ocp.Checkpointer, "save", fail)
    message = r"30\S* cannot be written: RESOURCE"
    with pytest.raises(InputError, match=message), Checkpoints(copied) as checkpoints:
        checkpoints.save(30, state_of(30))
    assert step_of(copied) == 20


def test_full_disk_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    message = "1: cannot be written: No space left on device"
    with pytest.raises(InputError, match=message), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state_of(1))
    assert list(tmp_path.iterdir()) == []


SAVE = """
import itertools, pathlib, sys
import checkpoints_test
from mixmo_jax.training.checkpoints import Checkpoints
checkpoints = Checkpoints(pathlib.Path(sys.argv[1]))
print("begins", flush=True)
for step in itertools.count(1):
    checkpoints.save(step, checkpoints_test.state_of(step), score=step % 7)
"""


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.stress) for seed in range(1, 12))]
)
def test_process_killed_while_it_saves_leaves_intact_checkpoints(tmp_path, capsys, seed):
    command = [sys.executable, "-c", SAVE, str(tmp_path / "run")]
    with subprocess.Popen(command, cwd=__file__.rpartition("/")[0], stdout=subprocess.PIPE) as run:
        run.stdout.readline()
        time.sleep(random.Random(seed).random())
        run.kill()
    assert run.returncode == -signal.SIGKILL
    checkpoints = Checkpoints(tmp_path / "run")
    if checkpoints.steps:
        state, _ = checkpoints.restore(LIKE)
        step = int(state["step"])
        assert step == checkpoints.latest_step
        np.testing.assert_array_equal(state["params"]["w"], step + 0.5)
        assert checkpoints.best_score == min(step, 6)
        checkpoints.delete_after(step)
    assert capsys.readouterr().err == ""
