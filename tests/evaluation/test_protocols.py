from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2m_jax import InputError
from r2m_jax.data.catalogue import DF40_METHODS, FACEFORENSICS_METHODS, UNIVERSAL_METHODS
from r2m_jax.data.named_sets import R2M_THREE, select_set
from r2m_jax.data.records import Record
from r2m_jax.evaluation.protocols import NAMES, UNSEEN, Column, Selector, protocol


def df40():
    """DF40 as its folders list it: two frames a method and domain, real ones of both domains, FaceForensics++."""
    records = []
    for domain in ("ff", "cdf"):
        records += [Record(f"{domain}/real/{i}.png", 0, domain=domain, dataset="DF40") for i in range(3)]
        records += [
            Record(f"{m.name}/{domain}/{i}.png", 1, m.family, m.name, domain, f"v{i}", dataset="DF40")
            for m in DF40_METHODS
            if not m.unknown_domain
            for i in range(2)
        ]
    records += [Record(f"{m.name}/0.png", 1, m.family, m.name, "ff", dataset="FF++") for m in FACEFORENSICS_METHODS]
    for method in DF40_METHODS:
        if method.unknown_domain:
            records.append(Record(f"DF40/{method.name}/fake/0.png", 1, method.family, method.name, dataset="DF40"))
            if method.name not in ("e4e", "MidJourney"):
                records.append(Record(f"DF40/{method.name}/real/0.png", 0, dataset="DF40"))
    return records


def forged():
    fakes = [Record(f"{m}{i}", 1, f, m, "mine", f"{m}{i}") for f, m in FORGED.items() for i in range(2)]
    return [Record(f"r{i}", 0, domain="mine", video=f"r{i}") for i in range(3)] + fakes


FORGED = {"FS": "my_swap", "FR": "my_turn", "EFS": "my_net"}


def chosen(formed, records, column):
    mask = formed.masks(records)[column]
    return [record for record, inside in zip(records, mask, strict=True) if inside]


@pytest.mark.parametrize(("name", "domain"), [("df40-p1", "ff"), ("df40-p2", "cdf")])
def test_df40s_first_protocols_are_its_collective_sets(name, domain):
    records = df40()
    formed = protocol(name, records)
    assert [column.name for column in formed.columns] == ["FS", "FR", "EFS"]
    assert formed.notes == ()
    for family in ("FS", "FR", "EFS"):
        # named_sets lists the methods one by one; the column goes by family.
        assert chosen(formed, records, family) == select_set(records, f"{family}All_{domain}").records


def test_a_collective_list_without_methods_counts_too():
    listed = [Record("a", 0, domain="ff"), Record("b", 1, "FS", "", "ff", dataset="FSAll_ff")]
    formed = protocol("df40-p1", listed)
    assert chosen(formed, listed, "FS") == listed
    assert formed.notes == (
        "the column FR is left out: there is no fake image of family FR, domain ff.",
        "the column EFS is left out: there is no fake image of family EFS, domain ff.",
    )


def test_lists_that_repeat_their_real_images_stay_apart():
    records = [
        Record(path, label, family * label, method * label, "ff", dataset=dataset)
        for dataset, family, method in (("FSAll_ff", "FS", "fsgan"), ("FRAll_ff", "FR", "lia"), ("lia_ff", "FR", "lia"))
        for path, label in (("r0", 0), ("r1", 0), (method, 1))
    ]
    formed = protocol("df40-p1", records)
    for name in ("FS", "FR"):
        assert [r.dataset for r in chosen(formed, records, name)] == [f"{name}All_ff"] * 3
    formed = protocol("one-vs-all", records)
    assert [r.dataset for r in chosen(formed, records, "fsgan")] == ["FSAll_ff"] * 3
    assert [r.dataset for r in chosen(formed, records, "lia")] == ["FRAll_ff"] * 3 + ["lia_ff"] * 3


def test_unseen_sets_bring_their_own_real_images():
    records = df40()
    formed = protocol("df40-p3", records)
    assert [column.name for column in formed.columns] == list(UNSEEN)
    assert len(UNSEEN) == 8
    for name in UNSEEN:
        if name != "MidJourney":
            assert {record.path.split("/")[1] for record in chosen(formed, records, name)} == {name}
    borrowed = chosen(formed, records, "MidJourney")
    assert sum(record.label == 0 for record in borrowed) == sum(record.label == 0 for record in records)
    assert any("MidJourney came without real images" in note for note in formed.notes)
    assert any("e4e is left out" in note for note in formed.notes)
    # As lists, the sets are told by the name of the data set instead of the folder.
    listed = [replace(r, path="x", dataset=r.path.split("/")[1]) if r.path.startswith("DF40/") else r for r in records]
    for name, mask in protocol("df40-p3", listed).masks(listed).items():
        np.testing.assert_array_equal(mask, formed.masks(records)[name])


def test_seen_families_on_both_domains():
    records = df40()
    ours, theirs = protocol("df40-seen", records), protocol("r2m-seen", records)
    assert ours.groups() == {g: [f"{f} {g}" for f in ("FS", "FR", "EFS")] for g in ("FF", "CDF")}
    for column in ours.columns:
        family, group = column.name.split()
        for formed in (ours, theirs):
            assert {record.domain for record in chosen(formed, records, column.name)} == {group.lower()}
        paper = {r.method for r in chosen(theirs, records, column.name) if r.label}
        assert paper == set(R2M_THREE[family])
        assert not (theirs.masks(records)[column.name] & ~ours.masks(records)[column.name]).any()
    only_ff = [record for record in records if record.domain == "ff"]
    assert [column.name for column in protocol("df40-seen", only_ff).columns] == ["FS FF", "FR FF", "EFS FF"]
    with pytest.raises(InputError, match=r"df40-p2 has no column.*no fake image of family FS, domain cdf"):
        protocol("df40-p2", only_ff)


def test_one_against_all_compares_within_the_methods_domain():
    records = [
        Record("r0", 0, domain="ff"), Record("r1", 0, domain="cdf"), Record("f0", 1, "FS", "simswap", "ff"),
        Record("f1", 1, "FS", "fsgan", "cdf"), Record("f2", 1, "FE", "e4e", "elsewhere"),
    ]  # fmt: skip
    formed = protocol("one-vs-all", records)
    assert [r.path for r in chosen(formed, records, "simswap")] == ["r0", "f0"]
    assert [r.path for r in chosen(formed, records, "fsgan")] == ["r1", "f1"]
    assert [r.path for r in chosen(formed, records, "e4e")] == ["r0", "r1", "f2"]
    assert formed.notes == ("there is no real image of the domain of e4e: all real images stand against them.",)


def test_data_sets_without_a_class_are_left_out_by_name():
    records = [
        Record("a", 0, dataset="x"), Record("b", 1, dataset="x"), Record("c", 1, dataset="y"),
        Record("d", 0, dataset="z"),
    ]  # fmt: skip
    formed = protocol("cross-dataset", records)
    assert [column.name for column in formed.columns] == ["x"]
    assert formed.notes == (
        "the column y is left out: there is no real image of data set y.",
        "the column z is left out: there is no fake image of data set z.",
    )


def test_manipulations_of_faceforensics():
    records = [Record("r", 0, domain="ff"), Record("o", 0, domain="dfdc")]
    records += [Record(m.name, 1, m.family, m.name, "ff") for m in FACEFORENSICS_METHODS]
    formed = protocol("ffpp-loo", records)
    assert {c.name: [r.path for r in chosen(formed, records, c.name)] for c in formed.columns} == {
        "DF": ["r", "FF-DF"], "F2F": ["r", "FF-F2F"], "FS": ["r", "FF-FS"], "NT": ["r", "FF-NT"],
    }  # fmt: skip


def test_universal_sets_keep_to_themselves():
    records = [
        Record(f"{m.name}{label}", label, m.family * label, m.name * label, dataset=m.name)
        for m in UNIVERSAL_METHODS
        for label in (0, 1)
    ]
    formed = protocol("ufd", records)
    assert len(formed.columns) == 19
    assert formed.metrics[:2] == ("ap", "macc")
    for name, mask in formed.masks(records).items():
        assert [r.path for r, inside in zip(records, mask, strict=True) if inside] == [f"{name}0", f"{name}1"]


def test_corits_sets_are_told_from_their_own_real_images():
    names = {
        "CDFv1": "Celeb-DF-v1", "CDFv2": "Celeb-DF-v2", "DFDCP": "DFDCP", "DFDC": "DFDC", "DFD": "DeepFakeDetection",
    }  # fmt: skip
    domains = {"CDFv1": "cdf", "CDFv2": "cdf", "DFDCP": "dfdcp", "DFDC": "dfdc", "DFD": "dfd"}
    records = [
        Record(f"{short}{label}", label, "FS" * label, spelled if label else "", domains[short], dataset=spelled)
        for short, spelled in names.items()
        for label in (0, 1)
    ] + [Record("ff", 0, domain="ff", dataset="FF++"), Record("FF-DF", 1, "FS", "FF-DF", "ff", dataset="FF++")]
    formed = protocol("corit-cross", records)
    assert [column.name for column in formed.columns] == list(names)
    for short in names:
        assert [r.path for r in chosen(formed, records, short)] == [f"{short}0", f"{short}1"]


def test_corits_five_methods_of_df40_are_those_of_the_other_domain():
    records = df40()
    formed = protocol("corit-df40", records)
    assert [column.name for column in formed.columns] == ["uniface", "e4s", "facedancer", "fsgan", "inswap"]
    for column in formed.columns:
        inside = chosen(formed, records, column.name)
        assert {r.domain for r in inside} == {"cdf"}
        assert {r.method for r in inside} == {"", column.name}
    ff = [record for record in records if record.domain == "ff"]
    assert any("no domain cdf" in note for note in protocol("corit-df40", ff).notes)


@pytest.mark.parametrize("name", NAMES)
def test_every_protocol_runs_on_a_forged_index_and_says_what_it_is_made_of(name):
    records = forged()
    formed = protocol(name, records)
    used = np.logical_or.reduce(list(formed.masks(records).values()))
    assert used.all()
    assert bool(formed.notes) == (name not in ("families", "one-vs-all", "cross-dataset"))
    single = [record for record in records if record.label]
    with pytest.raises(InputError, match=rf"the protocol {name} has no column with real and fake images"):
        protocol(name, single)


@given(st.permutations(range(len(df40()))), st.sampled_from(NAMES))
def test_the_order_of_records_does_not_matter(order, name):
    records = df40()
    moved = [records[place] for place in order]
    try:
        masks = protocol(name, records).masks(records)
    except InputError:
        with pytest.raises(InputError):
            protocol(name, moved)
        return
    again = protocol(name, moved).masks(moved)
    assert again.keys() == masks.keys()
    for column, mask in masks.items():
        np.testing.assert_array_equal(again[column], mask[list(order)])


def test_selectors_know_methods_in_any_spelling():
    records = [Record("a", 1, "EFS", "ddim"), Record("b", 1, "EFS", "DDPM"), Record("c", 1, "EFS", "rddm")]
    column = Column("x", Selector(methods=("ddpm",)))
    assert column.mask(records).tolist() == [True, True, False]
    assert Selector(families=("EFS",), domains=("ff", "cdf")).words() == "family EFS, domain ff or cdf"


def test_an_unknown_protocol_is_named():
    with pytest.raises(InputError, match=r"no protocol 'df40p1'; did you mean df40-p1"):
        protocol("df40p1", forged())
