"""Names of the special tokens: every vocabulary has all of them, in this order, behind its text.

Sixteen in version 2: nanochat's for conversations and its tool, a system turn in the same style,
ChatML's two tags, and names held free. Version 1 had the first nine.
"""

BOS, ASSISTANT_END = "<|bos|>", "<|assistant_end|>"
VERSION_1 = (
    BOS,
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    ASSISTANT_END,
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)
SPECIALS = (
    *VERSION_1,
    "<|system_start|>",
    "<|system_end|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|reserved_0|>",
    "<|reserved_1|>",
    "<|reserved_2|>",
)
BY_VERSION = {1: VERSION_1, 2: SPECIALS}
NEWEST = 2
