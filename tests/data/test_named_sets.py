"""The papers' sets against the numbers the papers print, and the split against leaks."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2m_jax.data import catalogue
from r2m_jax.data.named_sets import (
    PROTOCOLS,
    R2M_SIX,
    R2M_THREE,
    SETS,
    footage,
    named_set,
    protocol,
    select_set,
    split_by_video,
)
from r2m_jax.data.records import Record
from r2m_jax.errors import InputError


def fake(method, video="v", domain="ff", split="train"):
    return Record("f.png", 1, catalogue.method(method).family, method, domain, f"{method}/{video}", split)


def real(video="v", domain="ff", split="train", dataset=""):
    return Record("r.png", 0, domain=domain, video=video, split=split, dataset=dataset)


def test_r2m_sizes():
    assert [len(methods) for methods in R2M_THREE.values()] == [8, 8, 8]
    assert [len(methods) for methods in R2M_SIX.values()] == [5, 4, 6, 6, 5, 5]
    assert len({m for methods in R2M_SIX.values() for m in methods}) == 31
    assert {m for methods in R2M_THREE.values() for m in methods} < {m for ms in R2M_SIX.values() for m in ms}


def test_every_method_of_a_set_is_in_the_catalogue_under_that_name_and_family():
    for named in SETS.values():
        assert [catalogue.method(m).name for m in named.methods] == list(named.methods)
    for family, methods in R2M_THREE.items():
        assert {catalogue.method(m).family for m in methods} == {family}


def test_df40_sets_and_protocols():
    assert [len(SETS[f"{name}_ff"].methods) for name in ("FSAll", "FRAll", "EFSAll")] == [9, 12, 10]
    assert len(PROTOCOLS["df40-p3"].test) == 9
    assert len(PROTOCOLS["df40-p4"].train) == 31
    assert len(protocol("r2m-three").test) == 3 + 3 + 8
    assert len(protocol("r2m-six").train) == 6
    for p in PROTOCOLS.values():
        assert {*p.train, *p.test} <= set(SETS)


def test_names_in_other_spellings_and_the_nearest():
    assert named_set("ddim_ff").name == "ddpm_ff"
    assert named_set("StarGAN2").name == "starganv2"
    assert named_set("fsall_FF").name == "FSAll_ff"
    with pytest.raises(InputError, match=r"no set 'r2m-fss'; did you mean .*r2m-fs.* Available: r2m-fs, "):
        named_set("r2m-fss")
    with pytest.raises(InputError, match="no protocol 'df40-p5'; did you mean"):
        protocol("df40-p5")


def test_selection_takes_methods_and_reals_of_the_domain():
    records = [fake("simswap"), fake("uniface"), fake("simswap", domain="cdf"), real(), real(domain="cdf")]
    selected = select_set(records, "r2m-fs-ff")
    assert selected.records == [records[0], records[3]]
    assert selected.lacking == [f"no image of {m} in the domain ff" for m in R2M_THREE["FS"] if m != "simswap"]
    assert select_set(records, "simswap_ff").lacking == []
    assert select_set(records, "r2m-s1").records == records
    respelled = Record("f.png", 1, "EFS", "ddim", "ff", "v", "train")
    assert select_set([respelled, real()], "ddpm_ff").records[0] is respelled


def test_what_a_set_lacks_is_said_by_name():
    assert select_set([fake("simswap")], "simswap_ff").lacking == ["no real image in the domain ff"]
    lacking = select_set([fake("simswap"), real(split="test")], "simswap_ff").lacking
    assert lacking == ["no real image in the split train", "no fake image in the split test"]
    with pytest.raises(InputError, match="set e4s_ff is not in the data: no image of e4s in the domain ff"):
        select_set([fake("simswap"), real()], "e4s_ff")


def test_reals_of_a_set_of_unknown_domain_are_its_own():
    mine, other = real(domain="", dataset="heygen"), real(domain="", dataset="CollabDiff")
    assert select_set([fake("heygen", domain=""), mine, other], "heygen").records[1:] == [mine]


@pytest.mark.parametrize(
    ("video", "source"),
    [
        ("simswap/id0_id16_0001", "id0_0001"),
        ("id0_0001", "id0_0001"),
        ("pixart/cdf/Celeb-real/id0_0001", "id0_0001"),
        ("FF-DF/001_870", "001"),
        ("001", "001"),
        ("00012", "00012"),
    ],
)
def test_footage(video, source):
    assert footage(Record("a", 0, video=video)) == source


def celeb_df(people=30, clips=10):
    reals = [real(f"id{p}_{c:04d}", "cdf") for p in range(people) for c in range(clips)]
    fakes = [
        fake(method, f"id{p}_id{(p + 1) % people}_{c:04d}", "cdf")
        for method in ("simswap", "e4s")
        for p in range(people)
        for c in range(clips)
    ]
    return reals + fakes


def test_the_new_split_leaks_no_footage_and_has_its_shares():
    records = select_set(celeb_df(), "r2m-fs-cdf-real").records
    splits = {}
    for record in records:
        splits.setdefault(footage(record), set()).add(record.split)
    assert len(splits) == 300
    assert all(len(found) == 1 for found in splits.values())
    shares = Counter(record.split for record in records)
    # three standard deviations of a binomial share of 300 videos
    for split, share in (("train", 0.64), ("val", 0.16), ("test", 0.20)):
        assert abs(shares[split] / len(records) - share) < 3 * (share * (1 - share) / 300) ** 0.5


@given(st.integers(0, 2**32), st.sets(st.integers(0, 299), min_size=1), st.randoms())
def test_a_video_keeps_its_split_whatever_else_is_there(seed, some, random):
    records = celeb_df(10, 3)
    whole = {r.clip: r.split for r in split_by_video(records, seed)}
    subset = [records[i % len(records)] for i in some]
    random.shuffle(subset)
    assert all(whole[r.clip] == r.split for r in split_by_video(subset, seed))


def test_seed_and_shares():
    records = celeb_df()
    assert split_by_video(records, 1) == split_by_video(records, 1)
    assert split_by_video(records, 1) != split_by_video(records, 2)
    assert {r.split for r in split_by_video(records, 0, (0.0, 0.0, 1.0))} == {"test"}
    with pytest.raises(InputError, match="do not add up to 1"):
        split_by_video(records, 0, (0.5, 0.2, 0.2))
