"""Random JSON schemas, each with an answer."""


def schema(rng, depth=0):
    kinds = ["integer", "string", "boolean", "enum", "null"] + ["object", "array"] * (depth < 2)
    match rng.choice(kinds):
        case "integer":
            return {
                "type": "integer",
                "minimum": rng.randint(-99, 0),
                "maximum": rng.randint(1, 999),
            }
        case "string":
            return {"type": "string", "minLength": 1, "maxLength": rng.randint(1, 9)}
        case "enum":
            return {"enum": ["x", 3, None, "東京"][: rng.randint(1, 4)]}
        case "array":
            return {"type": "array", "items": schema(rng, depth + 1), "minItems": 1, "maxItems": 3}
        case "object":
            names = rng.sample(["name", "n", "straße", 'a"b'], rng.randint(1, 4))
            return {
                "type": "object",
                "properties": {name: schema(rng, depth + 1) for name in names},
                "required": names,
                "additionalProperties": False,
            }
        case kind:
            return {"type": kind}
