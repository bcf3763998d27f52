"""Text datasets: names, labels, OOD partners, and what is said of files that are wrong."""

from __future__ import annotations

import gzip

import pandas as pd
import pytest
from conftest import clear_caches, folder_flags, write_texts

from checks import datasets as check_datasets
from utils.datasets import (
    choose_datasets,
    list_datasets,
    list_ood_datasets,
    load_dataset,
    load_ood,
    unlabelled_ood_files,
)
from utils.runtime.errors import UserError
from utils.settings import Condition, split
from utils.text_checks import check_ood_texts, check_texts


def write(path, prompts, targets, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"prompt": prompts, "target": targets}).to_csv(path, index=False, **options)


@pytest.mark.parametrize(
    ("targets", "classes"),
    [
        ([1, 0, 1], ("0", "1")),
        (["True", "False", "True"], ("False", "True")),
        ([10, 9, 10], ("9", "10")),
        (["yes", "no", "yes"], ("no", "yes")),
    ],
)
def test_labels_are_codes_of_the_sorted_values(paths, targets, classes):
    write_texts(paths, ["d"])
    write(paths.texts("d"), ["a", "b", "c"], targets)
    dataset = load_dataset(paths, "d")
    assert dataset.classes == classes
    assert dataset.labels.tolist() == [1, 0, 1]


def test_texts_like_na_stay_texts(paths):
    write_texts(paths, ["d"])
    write(paths.texts("d"), ["NA", "None", "nan"], [0, 1, 1])
    assert load_dataset(paths, "d").texts == ["NA", "None", "nan"]


def test_compressed_files_are_read_and_plain_ones_win(paths):
    write_texts(paths, ["d"])
    plain = paths.texts("d")
    write(plain.with_name("d.csv.zst"), ["z", "z"], [0, 1], compression="zstd")
    assert len(load_dataset(paths, "d")) == 300
    plain.unlink()
    assert load_dataset(paths, "d").texts == ["z", "z"]


def test_a_users_own_csv_is_a_dataset(paths):
    write_texts(paths, ["d"])
    write(paths.texts("mine"), ["a", "b"], [0, 1])
    assert list_datasets(paths) == ("d", "mine")


def test_ood_labels_follow_the_training_classes(paths):
    write_texts(paths, ["d"], ood=("d",))
    write(paths.texts("d"), ["a", "b"], ["cat", "dog"])
    write(paths.ood_texts("d"), ["x", "y", "z"], ["dog", "dog", "cat"])
    assert load_ood(paths, "d").labels.tolist() == [1, 1, 0]
    write(paths.ood_texts("d"), ["x", "y"], ["dog", "bird"])
    with pytest.raises(UserError, match=r"targets \['bird'\] that are no class of d"):
        load_ood(paths, "d")


def test_unlabelled_ood_files_are_no_dataset(paths):
    write_texts(paths, ["d", "66_living-room"], ood=("d",))
    (paths.ood_texts("x").parent / "66_living-room_translations.csv").write_text(
        "Language,Translation\nFrench,salon\n"
    )
    assert list_ood_datasets(paths) == ["d"]
    assert [file.name for file in unlabelled_ood_files(paths)] == [
        "66_living-room_translations.csv"
    ]


@pytest.mark.parametrize(
    ("targets", "message"),
    [([1, 1, 1], "1 classes"), ([1, 2, 3], "3 classes"), ([1, None, 0], "no target in row 3")],
)
def test_wrong_targets_are_named(paths, targets, message):
    write_texts(paths, ["d"])
    write(paths.texts("d"), ["a", "b", "c"], targets)
    with pytest.raises(UserError, match=message):
        load_dataset(paths, "d")


@pytest.mark.parametrize("blank", ["", "  ", "\n"])
def test_empty_prompts_are_named(paths, blank):
    write_texts(paths, ["d"])
    write(paths.texts("d"), ["a", blank, "c", blank], [0, 1, 0, 1])
    with pytest.raises(
        UserError, match=r"d\.csv has no prompt in row 3 and 1 others: fill or remove it"
    ):
        load_dataset(paths, "d")


def test_a_users_larger_dataset_is_drawn_from_all_its_rows(paths, capsys):
    """Sorted by label, its first 5,000 rows would be one class."""
    write_texts(paths, ["d"])
    texts = [f"text {i}" for i in range(25_000)]
    write(paths.texts("own"), texts, [0] * 20_000 + [1] * 5000)
    dataset = load_dataset(paths, "own")
    assert len(dataset) == 5000
    assert abs(dataset.labels.mean() - 0.2) < 0.02
    places = [int(text.split()[1]) for text in dataset.texts]
    assert places == sorted(places)  # in the file's order, and each row once
    assert len(set(places)) == 5000
    clear_caches()
    again = load_dataset(paths, "own")
    assert again.texts == dataset.texts
    assert check_datasets.main(["--text_dir", str(paths.text_dir)]) == 0
    assert "own: 5000 of its 25000 rows are used, drawn with seed 42" in capsys.readouterr().out


def test_the_papers_own_keep_their_first_rows(paths):
    write_texts(paths, ["d"])
    write(paths.texts("d"), [f"text {i}" for i in range(6000)], [0, 1] * 3000)
    assert load_dataset(paths, "d").texts == [f"text {i}" for i in range(5000)]
    assert load_dataset(paths, "d").notes == ()


@pytest.mark.parametrize(
    ("content", "note"),
    [
        ("Prompt,Target\na,0\nb,1\n", "its column 'Prompt' is taken for 'prompt'"),
        ("\ufeffprompt;target\r\na;0\r\nb;1\r\n", "separated by ';'"),
        ("sep=;\nprompt;target\na;0\nb;1\n", "separated by ';'"),
        ("prompt\ttarget\na\t0\nb\t1\n", "separated by '\\t'"),
        ("prompt,target\na,0\nb,1.0\nb,1\n", "'1' ('1' '1.0')"),
        ("prompt,target\na, 1\nb,1\nc,0\n", "'1' (' 1' '1')"),
        ("prompt,target\na,TRUE\nb,True\nc,false\n", "'True' ('TRUE' 'True')"),
        ("prompt,target\na,0\nb,1", None),
        ('prompt,target\n"x;y",0\nb,1\n', None),
    ],
)
def test_what_spreadsheets_write_is_read_with_a_line_that_says_how(paths, content, note):
    write_texts(paths, ["d"])
    paths.texts("own").write_text(content, newline="")
    dataset = load_dataset(paths, "own")
    assert set(dataset.labels) == {0, 1}
    lines = [line for line in content.splitlines() if not line.startswith("sep=")]
    assert len(dataset) == len(lines) - 1
    notes = [one for one in dataset.notes if "trained on" not in one]  # so few rows
    assert bool(notes) == bool(note)
    assert note is None or any(note in said for said in dataset.notes)


@pytest.mark.parametrize("word", ["nan", "NaN", ""])
def test_nan_is_a_missing_target_and_no_class(paths, word):
    write_texts(paths, ["d"])
    write(paths.texts("own"), ["a", "b", "c"], ["1", word, "1"])
    with pytest.raises(UserError, match="no target in row 3"):
        load_dataset(paths, "own")


def test_a_comma_in_a_text_without_quotes_is_no_column(paths):
    write_texts(paths, ["d"])
    paths.texts("own").write_text("prompt,target\nSmith, John,1\nDoe, Jane,0\n")
    with pytest.raises(UserError, match="a comma in a text"):
        load_dataset(paths, "own")


@pytest.mark.parametrize(
    "targets",
    [("inf", "fin"), ("-inf", "0"), ("9007199254740993", "9007199254740992"), ("1_0", "10")],
)
def test_targets_that_only_python_takes_for_one_number_stay_two(paths, targets):
    write_texts(paths, ["d"])
    write(paths.texts("own"), ["a", "b"], targets)
    assert set(load_dataset(paths, "own").classes) == set(targets)


def test_what_systems_leave_beside_files_is_no_dataset(paths):
    write_texts(paths, ["d"])
    folder = paths.texts("d").parent
    for name in ("._own.csv", ".~lock.own.csv#", "~$own.csv", ".DS_Store", ".hidden.csv"):
        (folder / name).write_bytes(b"\0\1")
    assert list_datasets(paths) == ("d",)


def test_names_and_kinds_that_systems_spell_otherwise(paths):
    write_texts(paths, ["d"])
    folder = paths.texts("d").parent
    write(folder / "Caf\u0065\u0301.CSV", ["a", "b"], [0, 1])  # e and an accent, as macOS writes
    with gzip.open(folder / "packed.csv.gz", "wt") as file:
        file.write("prompt,target\na,0\nb,1\n")
    clear_caches()
    assert list_datasets(paths) == ("d", "Caf\u00e9", "packed")
    assert choose_datasets(paths, ["Caf\u0065\u0301"]) == ["Caf\u00e9"]
    assert len(load_dataset(paths, "Caf\u00e9")) == len(load_dataset(paths, "packed")) == 2
    (folder / "mine.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"mine\.jsonl is there, but \.csv, \.csv\.gz"):
        choose_datasets(paths, ["mine"])


def test_an_ood_file_of_one_class_is_named(paths, capsys):
    write_texts(paths, ["d"])
    write(paths.texts("own"), ["a", "b"], [0, 1])
    write(paths.ood_texts("own"), ["c", "e"], ["1.0", "1"])
    with pytest.raises(UserError, match=r"own_OOD\.csv has one class alone"):
        load_ood(paths, "own")
    write(paths.ood_texts("own"), ["c", "e"], ["1.0", "0"])
    clear_caches()
    assert load_ood(paths, "own").labels.tolist() == [1, 0]  # spelt otherwise than in training


def test_copies_of_training_rows_and_texts_in_both_classes_are_counted(paths, capsys):
    write_texts(paths, ["d", "own"])
    texts = [f"text {i}" for i in range(400)]
    texts[:4] = ["twice", "twice", "both", "both"]
    write(paths.texts("own"), texts, [1, 1, 1, 0] + [0, 1] * 198)
    dataset = load_dataset(paths, "own")
    check = check_texts(dataset)
    assert (check.n_rows, check.n_repeated, check.n_in_both_classes) == (400, 2, 2)
    rows = split(Condition("normal"), dataset.labels)
    trained = {dataset.texts[i] for i in rows.train}
    assert check.n_test_seen == sum(dataset.texts[i] in trained for i in rows.test)
    write(paths.texts("copies"), ["yes", "no"] * 200, [1, 0] * 200)
    write(paths.texts("three"), ["a", "b", "c"], [0, 1, 2])
    clear_caches()
    assert check_datasets.main(["--text_dir", str(paths.text_dir)]) == 1
    said = capsys.readouterr()
    assert "99 of 99 (100%)" in said.out.split("copies  ")[1].splitlines()[0]
    assert "three has 3 classes" in said.err


def test_a_name_with_spaces_is_taught(paths):
    write_texts(paths, ["d"])
    write(paths.texts("my own data"), ["a", "b"], [0, 1])
    clear_caches()
    assert choose_datasets(paths, ["my own data"]) == ["my own data"]
    with pytest.raises(UserError, match=r"--datasets 'my own data', or make DATASETS="):
        choose_datasets(paths, ["my", "own", "data"])


def test_unknown_names_come_with_the_nearest(paths):
    write_texts(paths, ["96_spam_is", "87_glue_cola"])
    with pytest.raises(UserError, match="unknown dataset '96_spam': did you mean 96_spam_is"):
        choose_datasets(paths, ["96_spam"])


def test_without_any_data_the_command_that_fetches_it_is_named(paths):
    with pytest.raises(UserError, match="make fetch-data"):
        list_datasets(paths)


def test_an_ood_file_whose_texts_stand_in_both_classes_is_not_the_task(paths, capsys):
    write_texts(paths, ["d"], ood=("d",))
    texts = [f"text {i}" for i in range(90)] + ["yes", "yes", "no", "no", "maybe"] * 2
    labels = [i % 2 for i in range(90)] + [0, 1, 0, 1, 0] * 2
    write(paths.ood_texts("d"), texts, labels)
    check = check_ood_texts(load_dataset(paths, "d"), load_ood(paths, "d"))
    # by hand: "yes" and "no" four times each; "maybe" has one class
    assert (check.n_rows, check.n_in_both_classes, check.n_shared) == (100, 8, 0)
    assert check.unfit
    assert check_datasets.main(folder_flags(paths)) == 0
    said = capsys.readouterr().out
    assert "d_OOD: 8 of 100 rows are texts that stand in both classes: it is not the task" in said
    write(paths.ood_texts("d"), [*texts[:92], *"abcdefgh"], labels)
    assert not check_ood_texts(load_dataset(paths, "d"), load_ood(paths, "d")).unfit


def test_the_one_ood_file_of_other_words_has_its_labels_the_right_way_round(paths):
    """90_glue_qnli has the classes 0 (entailment) and 1, its OOD file 1 and not_entailment."""
    write_texts(paths, ["90_glue_qnli"], ood=("90_glue_qnli",))
    write(paths.ood_texts("90_glue_qnli"), ["a", "b", "c"], ["1", "not_entailment", "1"])
    assert load_ood(paths, "90_glue_qnli").labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("n_rows", "said"), [(120, "of its 120 rows 20 are trained on"), (200, "")]
)
def test_a_small_dataset_of_ones_own_is_said_to_be_small(paths, n_rows, said):
    write_texts(paths, ["d"])
    rows = [f"text {i},{i % 2}" for i in range(n_rows)]
    paths.texts("own").write_text("\n".join(["prompt,target", *rows]) + "\n")
    notes = load_dataset(paths, "own").notes
    assert bool(notes) == bool(said)
    assert said in "".join(notes)
