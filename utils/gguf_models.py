"""Language models that are one GGUF file, as llama.cpp's users have them: dequantised once into a
folder that transformers reads as any other.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from utils.readers.fingerprints import file_fingerprint
from utils.runtime.errors import UserError, first_line, is_out_of_memory
from utils.runtime.files import atomic_folder, locked, write_json

MADE_FROM = "dequantised_from.json"  # in the folder: of which file it was made


def gguf_file(folder: Path) -> Path | None:
    """The GGUF file of a folder that holds one, and no model in transformers' own form; None where
    there is none.

    Raises UserError where there are several: which one is meant is not for us to guess.
    """
    if not folder.is_dir() or (folder / "config.json").is_file():
        return None
    files = sorted(folder.glob("*.gguf"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise UserError(f"{folder} has {len(files)} GGUF files ({names}): leave one in it")
    return files[0] if files else None


def dequantise(source: Path, target: Path) -> bool:
    """Write the model and tokenizer of a GGUF file as float32 safetensors into the folder
    ``target``; False where they are there already, made from this very file.

    Raises UserError when the file is broken or of a kind that transformers does not read.
    """
    made_from = {"file": source.name, "fingerprint": file_fingerprint(source)}
    ours = (target / MADE_FROM).is_file()
    if target.is_dir() and not ours and any(target.iterdir()):
        raise UserError(
            f"{source} is dequantised into {target}, where there are other files: give the model"
            " another name, or move them away"
        )
    with locked(target.parent, target.name):
        if _made_from(target) == made_from:
            return False
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()
        logging.getLogger("transformers").setLevel(logging.ERROR)
        print(f"{source.name}: dequantised into {target} (once)", flush=True)
        where = {"gguf_file": source.name, "trust_remote_code": False}
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(source.parent, **where)
            model, loading = transformers.AutoModel.from_pretrained(
                source.parent, dtype=torch.float32, output_loading_info=True, **where
            )
        except Exception as error:  # the reader has an error of its own for each kind of damage
            if is_out_of_memory(error):
                raise
            raise UserError(
                f"{source} cannot be read ({type(error).__name__}: {first_line(error)}): fetch it"
                " again, or take the model in safetensors"
            ) from error
        if loading["missing_keys"]:
            lacking = sorted(loading["missing_keys"])
            raise UserError(
                f"{source} lacks {len(lacking)} tensors of its model, {lacking[0]} is one: fetch it"
                " again"
            )
        # a model of its own, because transformers saves none that it has dequantised
        config = transformers.AutoConfig.from_pretrained(source.parent, **where)
        plain = transformers.AutoModel.from_config(config, dtype=torch.float32)
        plain.load_state_dict(model.state_dict())
        with atomic_folder(target) as temporary:
            plain.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            write_json(temporary / MADE_FROM, made_from)
    return True


def _made_from(folder: Path) -> dict | None:
    try:
        return json.loads((folder / MADE_FROM).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
