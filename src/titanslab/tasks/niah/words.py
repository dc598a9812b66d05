"""Word lists for the keys: a built-in one, and one read from files."""

from typing import Any

from titanslab.data.text import read_words

_ADJECTIVES = """
    able amber ample autumn bitter blue bold brave brief bright brisk broad calm careful clean clear clever
    cold copper coral crisp curious deep dim distant dry dusty eager early easy even fair faint famous fancy
    fast fierce fine firm fond fresh gentle glad golden grand green happy hidden hollow honest humble idle
    ivory jolly keen kind large late lazy light little lively lone long loud lucky mellow mild modest narrow
    neat noble odd olive open pale patient plain polite proud pure quick quiet rapid rare ready ripe rough
    round royal rustic sandy scarlet secret shady sharp shy silent silver simple sleepy slow small smooth soft
    solid spare spicy steady steep still strong sturdy subtle sunny sweet swift tall tame tender thin tidy
    tiny tough true upper vast velvet violet vivid warm wary wild windy wise witty wooden young
"""
ADJECTIVES: tuple[str, ...] = tuple(_ADJECTIVES.split())

_NOUNS = """
    acorn anchor apron arrow badge bakery banjo barrel basket beacon bell bench berry blanket boat bonnet
    bottle bridge broom bucket button cabin camel candle canoe carpet castle cedar chalk cherry chimney clock
    cloud coat comet compass copper cradle cricket crown cup curtain dairy desk diary dolphin donkey door
    drum eagle easel ember engine falcon farm feather fence ferry fiddle field finch flag flute forest forge
    fountain fox garden garlic gate ginger glove goose grape hammer harbor harp hat hazel heron hill honey
    horn island ivy jacket jar kettle key kite ladder lake lamp lantern lemon letter library lily lion lock
    loom magnet maple marble market meadow melon mill mirror moss mountain needle nest oak oar onion orchard
    otter owl paddle palace paper parrot path peach pebble pencil piano pillow pine planet plate plum pond
    quilt rabbit raven ribbon river robin rope saddle sail salmon scarf school shell ship shovel sparrow
    spoon spring stable stone stove street summit table tailor teapot temple thimble ticket tiger tower
    trumpet tulip valley vessel village violin wagon walnut watch well whale wheel willow window wolf
"""
NOUNS: tuple[str, ...] = tuple(_NOUNS.split())


def read_word_lists(adjectives: str | None, nouns: str | None) -> dict[str, Any]:
    """The word lists in the files that are named, as keyword arguments of `NIAH`."""
    return {name: read_words(path) for name, path in (("adjectives", adjectives), ("nouns", nouns)) if path}
