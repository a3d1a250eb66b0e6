"""The weights that a Python package carries, so that no download is needed; light, no torch."""

MINILM = "minilm"


# SHA-256 of `model.safetensors`, refused at any other: the name alone tells the content.
PACKAGED_SHA256 = {MINILM: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"}
