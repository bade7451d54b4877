"""What parts of a strategy do, as far as it matters to others; see `rounds.composition`."""

from __future__ import annotations

from enum import StrEnum


class Trait(StrEnum):
    """What a part does, as far as it matters to the others; the values complete "it ..."."""

    HANDLES_MESSAGES = "works on whole messages"
    PROVES_NAMES = "proves who sent a reply"
    TRUSTS_KEYS = "seals something to keys that others vouch for"
    ENCODES = "encodes updates"
    OWN_SUPPORT = "lets every client choose its coordinates"
    ROUND_SUPPORT = "restricts every round to other coordinates"
    FLAT = "knows coordinates, but no layers"
    PER_LAYER = "works layer by layer"
    SEES_UPDATES = "looks at single updates"
    COMBINES = "combines the updates"
    WITHSTANDS_LIARS = "combines so that some malicious clients cannot mislead it"
    HIDES_UPDATES = "hides single updates from the server"
    ONE_MODEL = "hides updates that started from one model only"
    NEEDS_EVERYBODY = "hides them under masks that cancel only in the sum over all clients"
    SETS_LENGTH = "gives the result a length that no bound on the updates limits"
    OUTGROWS_BOUND = "makes updates longer than their bound"
    SPENDS_ON_CLIENTS = "releases something about the clients' norms"
    PROTECTS_CLIENTS = "adds noise on the server that hides a single client"
    DRAWS_CLIENTS = "needs clients that are sampled independently at random"
    EXCLUDES = "goes on without the clients that have no budget"
    CHARGES_ROUNDS = "charges an update to the round in which it was asked for"
    NOISES_UPDATES = "adds noise to every update, to hide all of it"
    SHARES_NOISE = "has clients add shares of the noise that their sum needs"
    OPENS_DISTANCES = "opens distances between hidden updates, and selects by them"
    COVERS_METRICS = "promises that nothing about the clients' data gets out but through its noise"
    TELLS_TRAINING = "has clients report how they trained"
    OPTIMISES = "treats the step as a gradient of weights"
    SENDS_CONTROLS = "puts control variates beside the weights"
    OVERLAPS_VERSIONS = "combines updates that started from different models"
    CUTS_OFF = "excludes clients that are late"
    CHOOSES_CLIENTS = "chooses the clients"
    ASKS_ABOUT_DATA = "chooses by what clients say about their data"
    READS_REPLIES = "reads the replies of single clients"
    WITHOUT_MOD = "sends updates in the clear"
    TELLS_SINGLY = "has clients report one by one"


HIDDEN_SUM = frozenset({Trait.COMBINES, Trait.HIDES_UPDATES, Trait.TRUSTS_KEYS})
"""What every sum does that is opened with the help of clients."""
