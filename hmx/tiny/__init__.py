"""How the embedded model in `data/tiny` was made, and the world in which the true grade of every answer is known.

`world.txt` and `everyday.txt` are the grammar; `grammar` makes and recognises its sentences; `world` grades any text by
it. `interview` asks and answers, `damage` spoils answers, `corpus` mixes them into what the model reads, `lessons` adds
facts and errands and makes the miniature benchmarks of them. `tokenizer`, `rows`, `pretrain` and `build` make the model
from that; `tries` and `fitting` find what else could stand in the place of a word. `report`, with `capability` and
`studies`, measures it. Nothing outside needs any of this but `hmx.tiny.world.examine`.
"""
