"""Inputs that the fuzzer found (tests/faults/fuzz.py), kept: each must end in one line and in
little memory.
"""

from __future__ import annotations

import base64
import resource

import pytest

from utils.readers.pickles import read_pickle
from utils.readers.weight_files import stored_arrays
from utils.runtime.errors import UserError

FOUND = {
    "a zip of a version to come": (
        "x.npz",
        (
            "UEsDBC0AAAAAAAAAIQCjaFJ3////////AP8FFP8AeC5ucP/////////////////+////AAAAAACTTlVNUFkBAHYAAAAAACAgIApQSwECLQPT9w"
            "AAAAAAACEAo2hSd4AAAACAAAAAAAUAAAAAAAAAAAAAgAEAAAAAeC5ucI1QSwUGAAAAAAEAAQAzAAAAtgAAAAgA"
        ),
    ),
    "a header in UTF-16": (
        "x.safetensors",
        "OAAAAAAAAABBAHgiOnsiZHR5cGUiOiJGMzIiLCJzaGFwZSI6WzAsM10sImRhdGFfb2Zmc2V0cyI6WzUsMF19fQ==",
    ),
    "a place in the memo behind gigabytes": (
        "x.pkl",
        (
            "gASV9QAAAAAAAAB9lCiMCHRlc3RfYXVjlIwWbnVtcHkuX2NvcmUubXVsdGlhcnJheZSMBnNjYWxhcpSTlIwFbnVtcHmUjAVkdHlwZZSTlHJyYX"
            "kKc2NhbGFyCnECY251bXB5CmR0eXBlCnEDWAIAAABmOGNudW1weS5fY29yZS5tdWx0aWFycmF5CnNjYWxhcgpxAmNudW1weQpkdHlwZQpxA1gC"
            "AAAAZjhxBImMAmY4lImIh5RSlChLA4wBOJROTk5K/////0r/////SwB0lGJDCAAlAAAAAADgP5SGlFKUjAFrlGgEaAeMAmk4lImIh5RSlChLA2"
            "gLTk5OSv////9K/////0sAdJRiQwgDAAAAAAAAAJSGlFKUjAdkYXRhc2V0lE5OSv////9K/////0sAdJRiQwEBlIaUUpR1Lg=="
        ),
    ),
    "a protocol that does not exist": (
        "x.pkl",
        (
            "gASVyAIAAAAAAAB9lCiMAXeUjAx0b3JjaC5fdXRpbHOUjBJfcmVidWlsZF90ZW5zb3JfdjKUk5QojA10b3JjaC5zdG9yYWdllIwQX2xvYWRfZn"
            "JvbV9ieXRlc5STlEITAQAAgAKKCmz8nEb5IGqoUBkugAJN6QMugAJ9cQAoWBAAAABwcm90b2NvbF92ZXJzaW9ucQFN6QNYDQAAAGxpdHRsZV9l"
            "bmRpYW5xAohYCgAAAHR5cGVfc2l6ZXNxA31xBChYBQAAAHNob3J0cQVLAlgDAAAAaW50cQZLBFgEAAAAbG9uZ3EHSwR1dS6AAihYBwAAAHN0b3"
            "JhZ2VxAGN0b3JjaApGbG9hdFN0b3JhZ2UKcQFYDgAAADk0MDE5MTc4NjI1OTg0cQJYAwAAAGNwdXEDSwZOdHEEUS6AAl1xAFgOAAAAOTQwMTkx"
            "Nzg2MjU5ODRxAWEuBgAAAAAAAAAAAAAAAACAPwAAAEAAAEBAAACAQAAAoECUhZRSlEsASwNLAoaUSwFLA4aUiYwLY29sbGVjdGlvbnOUjAtPcm"
            "RlcmVkRGljdJSTlClSlHSUUpSMAWiUaAQoaAdD/oACigps/JxG+SBqqFAZLoACTekDLoACfXEAKFgQAAAAcHJvdG9jb2xfdmVyc2lvbnEBTekD"
            "WA0AAABsaXR0bGVfZW5kaWFucQKIWAoAAAB0eXBlX3NpemVzcQN9cQQoWAUAAABzaG9ydHEFSwJYAwAAAGludHEGSwRYBAAAAGxvbmdxB0sEdX"
            "UugAIoWAcAAABzdG9yYWdlcQBjdG9yY2gKSGFsZlN0b3JhZ2UKcQFYDgAAADk0MDE5MTc2MzczNzkycQJYAwAAAGNwdXEDSwJOdHEEUS6AWAIO"
            "XQBxAAAAOTQwMTkxNzYzNzM3OTJxAWEuAgAAAAAAAAAAPAA8lIWUUpRLAEsChZRLAYWUiWgPKVKUdJRSlHUu"
        ),
    ),
}


@pytest.mark.parametrize("name", list(FOUND))
def test_what_the_fuzzer_found_is_one_line_now(tmp_path, name):
    file_name, *encoded = FOUND[name]
    path = tmp_path / file_name
    path.write_bytes(base64.b64decode("".join(encoded)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=file_name):
        (read_pickle if path.suffix == ".pkl" else stored_arrays)(path)
    # KiB; torch is loaded meanwhile
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 << 10
