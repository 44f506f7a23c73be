"""The rows of a training: read, checked, split; a table that cannot be trained on is told apart."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mlpipeline.core.errors import ConfigError
from mlpipeline.models.data import load, load_part
from mlpipeline.models.preprocessing import default_preprocessing
from mlpipeline.models.settings import DataSection


def people(rows=40):
    """Mixed types with gaps, and a class of three kinds."""
    numbers = np.arange(rows)
    return pd.DataFrame(
        {
            "age": np.where(numbers % 7 == 0, np.nan, 20.0 + numbers),
            "city": np.where(numbers % 5 == 0, None, np.where(numbers % 2, "Bern", "Basel")),
            "is_new": numbers % 3 == 0,
            "target": np.array(["a", "b", "c"])[numbers % 3],
        }
    )


def section(**given):
    return DataSection.model_validate(given)


# --- where rows are --------------------------------------------------------------------------------


def test_the_files_of_the_convention_are_found(tmp_path):
    """Those that are there; the one to train on has to be."""
    people(30).to_parquet(tmp_path / "train_preprocessed.parquet")
    people(9).to_parquet(tmp_path / "test_preprocessed.parquet")
    found = load(None, tmp_path, "target")
    assert {"train": 30, "test": 9} == {name: len(part.X) for name, part in found.parts()}
    assert ["age", "city", "is_new"] == list(found.train.X)
    with pytest.raises(ConfigError, match=r"there are no val rows in .*, only: train, test"):
        found.part("val")


def test_without_any_rows_it_says_both_ways_to_give_them(tmp_path):
    """The folder and the section."""
    with pytest.raises(ConfigError, match=r"no train_preprocessed.parquet in .*; write it there .* data: "):
        load(None, tmp_path, "target")


@pytest.mark.parametrize("path", ["rows", "rows.dat", "file://{folder}/rows"])
def test_a_format_tells_what_the_ending_does_not(tmp_path, path):
    """Of a file, of one whose ending says something else, and of a URL."""
    place = path.format(folder=tmp_path)
    people(30).to_parquet(tmp_path / place.rpartition("/")[2])
    found = load(section(path=place, format="parquet"), tmp_path, "target")
    assert 30 == sum(len(part.X) for _, part in found.parts())
    with pytest.raises(ConfigError, match=r"has no ending that tells .* Or say it: data: \{format: csv\}"):
        load(section(path=place), tmp_path, "target")


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".parquet", ".json", ".jsonl"])
def test_a_file_is_read_by_its_ending(tmp_path, ending):
    """The same rows from each."""
    frame = people()
    path = tmp_path / f"people{ending}"
    if ending == ".parquet":
        frame.to_parquet(path)
    elif ending.startswith(".json"):
        frame.to_json(path, orient="records", lines=ending == ".jsonl")
    else:
        frame.to_csv(path, index=False)
    found = load(section(path=path.name), tmp_path, "target")
    assert 40 == sum(len(part.X) for _, part in found.parts())
    assert ("classification", path.name) == (found.task_type, found.source)


def test_a_url_is_read(tmp_path):
    """Whatever pandas can open."""
    people().to_csv(tmp_path / "people.csv", index=False)
    found = load(section(path=(tmp_path / "people.csv").as_uri()), tmp_path, "target")
    assert 40 == sum(len(part.X) for _, part in found.parts())


@pytest.mark.parametrize(
    ("name", "task_type"),
    [
        ("iris", "classification"),
        ("wine", "classification"),
        ("breast_cancer", "classification"),
        ("digits", "classification"),
        ("diabetes", "regression"),
    ],
)
def test_scikit_learns_sets_are_there_by_name(name, task_type, tmp_path):
    """And what their targets ask for is seen."""
    assert task_type == load(section(dataset=name), tmp_path, "target").task_type


# --- splitting ---------------------------------------------------------------------------------------


def test_the_split_is_the_same_every_time_and_another_with_another_seed(tmp_path):
    """Shares as asked for, classes in the same shares, no row twice."""
    people(100).to_csv(tmp_path / "p.csv", index=False)

    def parts(**given):
        found = load(section(path="p.csv", split={"val": 0.2, "test": 0.1}, **given), tmp_path, "target")
        return dict(found.parts())

    first = parts()
    assert {"train": 70, "val": 20, "test": 10} == {name: len(part.y) for name, part in first.items()}
    assert 100 == len(set().union(*(part.X.index for part in first.values())))
    assert {"a", "b", "c"} == set(first["test"].y)
    assert list(first["test"].X.index) == list(parts()["test"].X.index)
    assert list(first["test"].X.index) != list(parts(seed=1)["test"].X.index)


def test_a_rare_class_does_not_stop_a_split_that_nobody_asked_to_be_stratified(tmp_path):
    """Asked for, it is told which option to change."""
    frame = people()
    frame.loc[0, "target"] = "rare"
    frame.to_csv(tmp_path / "p.csv", index=False)
    assert 40 == sum(len(part.X) for _, part in load(section(path="p.csv"), tmp_path, "target").parts())
    with pytest.raises(ConfigError, match=r"cannot be split into 0.15 for test.*; stratify: false"):
        load(section(path="p.csv", stratify=True), tmp_path, "target")


def test_shares_that_leave_nothing_are_refused():
    """By the section itself."""
    with pytest.raises(ValueError, match="leave no rows to train on"):
        section(path="p.csv", split={"val": 0.5, "test": 0.5})


# --- what cannot be trained on -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "given", "told"),
    [
        (lambda f: f, {"target": "targt"}, r"no column 'targt' for the target; did you mean 'target'\?"),
        (lambda f: f, {"features": ["ages"]}, r"no column 'ages'; did you mean 'age'\? for data.features"),
        (lambda f: f, {"features": ["target"]}, "data.features has 'target', which is the target"),
        (lambda f: f[["target"]], {}, "has only the target 'target', and nothing to predict it from"),
        (lambda f: f.head(0), {}, "p.csv has no rows"),
        (
            lambda f: f.assign(target="a"),
            {},
            "the target 'target' is 'a' in every row; nothing can be learned",
        ),
        (
            lambda f: f.assign(target=f.target.where(f.index != 4)),
            {},
            r"the target 'target' is missing in 1 of 40 rows \(the first is row 4\)",
        ),
    ],
)
def test_a_table_that_cannot_be_trained_on_is_refused(tmp_path, change, given, told):
    """With what is wrong, and where."""
    change(people()).to_csv(tmp_path / "p.csv", index=False)
    with pytest.raises(ConfigError, match=told):
        load(section(path="p.csv", **given), tmp_path, "target")


@pytest.mark.parametrize(
    ("content", "name", "told"),
    [
        ("", "p.csv", "p.csv is empty"),
        ("x", "p.parquet", "p.parquet cannot be read: ArrowInvalid"),
        ("x", "p.txt", "p.txt has no ending that tells what it is"),
        (None, "absent.csv", "there is no file absent.csv, neither in .* nor in"),
        (None, "/absent.csv", "there is no file /absent.csv"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, content, name, told):
    """By its name."""
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=told):
        load(section(path=name), tmp_path, "target")


def test_dates_are_told_rather_than_guessed(tmp_path):
    """What a date means to a model is the user's to say."""
    frame = people().assign(since=pd.Timestamp("2026-01-01"))
    frame.to_parquet(tmp_path / "p.parquet")
    with pytest.raises(ConfigError, match=r"\['since'\] hold dates; turn them into numbers"):
        load(section(path="p.parquet"), tmp_path, "target")


@pytest.mark.parametrize(
    ("target", "task_type", "told"),
    [
        (
            "age",
            "classification",
            "a classification needs classes, and the target 'age' holds numbers such as 0.5",
        ),
        ("city", "regression", "a regression needs numbers, and the target 'city' holds 'Bern'"),
    ],
)
def test_a_target_of_the_other_task_is_refused(tmp_path, target, task_type, told):
    """With the option to change."""
    frame = people().assign(age=lambda f: f.index + 0.5, city="Bern")
    frame.loc[3, "city"] = "Basel"
    frame.to_csv(tmp_path / "p.csv", index=False)
    with pytest.raises(ConfigError, match=f"{told}.*task_type"):
        load(section(path="p.csv"), tmp_path, target, task_type)


# --- rows to judge by ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_the_rows_to_judge_by_are_those_that_training_held_back(tmp_path, kind):
    """The same split for the same task, row by row; another task would stratify otherwise."""
    people(60).assign(target=np.arange(60) % 3).to_csv(tmp_path / "p.csv", index=False)
    given = section(path="p.csv", seed=3)
    trained = load(given, tmp_path, "target", kind)
    for name in ("test", "val", "train"):
        part = load_part(given, tmp_path, "target", on=name, task_type=kind)
        assert name == part.name
        pd.testing.assert_frame_equal(trained.part(name).X, part.table.X)
        pd.testing.assert_series_equal(trained.part(name).y, part.table.y)
    whole = load_part(given, tmp_path, "target", on="all")
    assert ("all", 60, "p.csv", "target") == (whole.name, len(whole.table.X), whole.source, whole.target)
    other = load_part(given, tmp_path, "target", task_type="regression").table.X
    if kind == "classification":
        assert list(other.index) != list(trained.part("test").X.index)


def test_a_file_to_judge_by_needs_no_others(tmp_path):
    """Nothing to train on, and one class only; of several, all are put together."""
    people(9).assign(target="a").to_parquet(tmp_path / "test_preprocessed.parquet")
    found = load_part(None, tmp_path, "target")
    assert ("test", 9) == (found.name, len(found.table.y))
    with pytest.raises(ConfigError, match=r"there are no train rows in .*, only: test$"):
        load_part(None, tmp_path, "target", on="train")
    people(5).to_parquet(tmp_path / "train_preprocessed.parquet")
    found = load_part(None, tmp_path, "target", on="all")
    assert ([*people(5)["target"], *"a" * 9], list(range(14))) == (
        list(found.table.y),
        list(found.table.X.index),
    )
    assert "test" == load_part(None, tmp_path, "target").name


def test_a_part_of_no_size_is_passed_over(tmp_path):
    """Or told, where it was asked for."""
    people(60).to_csv(tmp_path / "p.csv", index=False)
    given = section(path="p.csv", split={"test": 0})
    assert "val" == load_part(given, tmp_path, "target").name
    with pytest.raises(ConfigError, match=r"there are no test rows in p.csv, only: train, val"):
        load_part(given, tmp_path, "target", on="test")


# --- the default preparation ---------------------------------------------------------------------------


def test_the_preparation_fills_gaps_scales_and_encodes():
    """What it has not seen counts as rare; true is 1 and false 0."""
    X = people().drop(columns="target")
    found = default_preprocessing(X).set_output(transform="pandas").fit(X)
    rows = found.transform(X)
    assert not rows.isna().any().any()
    assert ["age", "city_Basel", "city_Bern", "is_new"] == list(rows)
    assert 0 == pytest.approx(rows["age"].mean(), abs=1e-9)
    other = found.transform(pd.DataFrame({"age": [np.nan], "city": ["Chur"], "is_new": [True]}))
    assert [0.0, 0.0, 1.0] == other[["city_Basel", "city_Bern", "is_new"]].iloc[0].tolist()


def test_a_column_of_nothing_is_refused():
    """There is no median of nothing."""
    with pytest.raises(ConfigError, match=r"\['age'\] hold nothing"):
        default_preprocessing(people().drop(columns="target").assign(age=np.nan))
