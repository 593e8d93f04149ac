"""A programmer: what habits of other libraries give, then mix, resize, save and a recipe."""

import loramerge as lm


def says(words, function, *arguments, **named):
    try:
        function(*arguments, **named)
    except (AttributeError, TypeError, lm.LoramergeError) as error:
        assert words in str(error), (words, str(error))
    else:
        raise AssertionError(words)


says("is an adapter, not a base", lambda: lm.merge(["zuzu", "polka"], "x.safetensors"))
says("`inspect` shows", lambda: lm.info)
says("give pairs", lm.mix, {"zuzu": 0.7, "polka": 0.3})
says("behind its name", lm.mix, ["zuzu", "polka"], ratios=[0.7, 0.3])
says("here it is called rank", lm.resize, "zuzu", new_rank=4)
says("rank=8", lm.resize, "zuzu")
says("did you mean zuzu?", lm.load, "zuzo")

a, b = lm.load("zuzu"), lm.load("polka")
both = lm.mix([(a, 0.7), (b, 0.3)])
assert both.ranks() == {7: 21, 15: 63}
small = lm.resize(both, rank=4)
assert lm.save(small, "small.safetensors", dialect="kohya") > 0
assert lm.load("small.safetensors").ranks() == {4: 84}
assert lm.diff(both, 0.7 * a + 0.3 * b).differs is False
said = []
lm.mix([(a, 7)], notify=said.append)
assert any("usual weights" in str(event) for event in said)
recipe = {
    "version": 1,
    "steps": {"x": {"mix": {"adapters": ["zuzu:0.5"]}, "save": "half.safetensors"}},
}
assert lm.plan(recipe).tasks["x"].state == "will run"
assert lm.run(recipe).outcomes["x"].status == "done"
assert lm.inspect("half.safetensors").family == "tiny"
