"""Names of the rows and columns of the core's arrays: the one place where their order stands.

The ledger and the belief write these arrays; ``kernels.py``, ``estimators.py``, their copies in C and the policies read
them. Each name is a number of its own and no ``range``: compiled, it is then a constant and not looked up. Must not
depend on any other module: the build reads this file to write the header of the C loops.
"""

from typing import Final

# -- the ledger's columns: a row a fact, one column a slot ------------------------------------------------------------

# What this router has in flight, in the order of ``Load``'s fields. ``PEERS +`` these: what its peers have there;
# ``UNATTRIBUTED +``: what the engine reports beyond both.
PREFILLING: Final = 0
PREFILL_TOKENS: Final = 1
DECODING: Final = 2
CONTEXT_TOKENS: Final = 3
LOAD: Final = 4  # such rows
PEERS: Final = 4
UNATTRIBUTED: Final = 8
SEQS_MAX: Final = 12
KV_TOKENS_MAX: Final = 13
CHUNK_TOKENS: Final = 14
PRICE_PER_S: Final = 15
NETWORK_S: Final = 16
WEIGHT: Final = 17
LAST_SENT: Final = 18  # number of this router's last send (-1: none)
UP: Final = 19
DRAINING: Final = 20
EJECTED: Final = 21
REPORTED_S: Final = 22  # when the engine was last scraped (-inf: never)
PREFILL_RATE: Final = 23  # prompt tokens a second sent there, as of RATE_AT_S
RATE_AT_S: Final = 24  # when the last request was sent there
TPOT_BOUND_S: Final = 25  # the tightest TPOT SLO of all requests there, this router's and its peers' (inf: none)
KV_USAGE: Final = 26
PREFIX_HIT_RATE: Final = 27
TURN: Final = 28  # when it is next, on a clock that a send moves on by 1 / weight
PEERS_TPOT_BOUND_S: Final = 29  # of its peers' alone
FIRST_TOKEN_S: Final = 30  # when the last first token came from there (-inf: never)
E2E_TPOT_BOUND_S: Final = 31  # the least time per token that the E2E SLOs of all requests there leave (inf: none)
PEERS_E2E_TPOT_BOUND_S: Final = 32  # of its peers' alone
OWN_TPOT_BOUND_S: Final = 33  # of this router's alone: what it publishes
OWN_E2E_TPOT_BOUND_S: Final = 34
SENT_TOKENS: Final = 35  # of prompts, that this router ever sent there: a counter that it publishes
PREFILLED_TOKENS: Final = 36  # the same of prompts whose first token came
COUNTED_PEERS: Final = 37  # sequences of peers that decode there and whose prompts are in PREFILL_RATE
LEDGER: Final = 38  # rows named here; the rows of further signals follow (``router.core.signals``)

# -- a belief's prior and factors: a row a slot -----------------------------------------------------------------------

FIXED: Final = 0
SEQ: Final = 1
CONTEXT: Final = 2
TOKEN: Final = 3
PAIR: Final = 4
FIRST: Final = 5
AHEAD: Final = 6
TERMS: Final = 7
# After the terms of a prior: the share of a batch that one stage has; places of the roof a root token; what prompts add
# to a step at least.
SHARE: Final = 7
SCALE: Final = 8
EAGER: Final = 9
PRIOR: Final = 10
ROOF_POINTS: Final = 128  # places of a roof

# -- a forecast: a row a fact, one column a candidate -----------------------------------------------------------------

TTFT: Final = 0
TPOT: Final = 1
E2E: Final = 2
METRICS: Final = 3
BAND: Final = 3  # of its load
TAILS: Final = 4  # where the three at the quantile of the request's SLO begin
CACHED: Final = 7  # tokens of the prompt
LOADS: Final = 8  # where the four of a candidate's load begin
EXPECTED_TPOT_VIOLATIONS: Final = 12  # replies there whose TPOT SLO the prompt should violate; 0 unless filled
IMPOSED_DELAY_S: Final = 13  # that a send adds to the replies running there, all together
PREFILL_SHARE: Final = 14  # of its time, that an engine spends on prompts
FORECAST: Final = 15  # rows
BANDS: Final = 3  # engines with no prompt ahead; with some; full
FULL: Final = 2

# -- what one send was expected to take: the terms of its TTFT, then its spreads, by metric and tracked quantile -------

KEPT_QUANTILES: Final = 5
SPREADS: Final = 7  # where they begin
EXPECTATION: Final = 22  # places

# -- the watch for changes of a backend: a row a slot -----------------------------------------------------------------

CUSUM_ABOVE: Final = 0
CUSUM_BELOW: Final = 1
SEEN: Final = 2  # outcomes
CHANGES: Final = 3  # found
WATCH: Final = 4  # columns

# -- scores of one metric, band and backend: a vector, and beside it their places by size, a byte each -----------------

WINDOW: Final = 160  # scores that stand for the next one, by time (the 0.99 rank needs 99); below 256
LEVELS: Final = 160  # where the level that each tracked quantile is read at begins
SEEN_SCORES: Final = 165
SCORES: Final = 166  # places

# -- how predictions did: a row a slot --------------------------------------------------------------------------------

STATS_SEEN: Final = 0  # outcomes, by metric
STATS_MET: Final = 3  # those within each tracked quantile, by metric and quantile
STATS_ERROR: Final = 18  # median size of the log error, by metric
STATS_COVERAGE: Final = 21  # share of first tokens within the 0.9 quantile, lately
STATS: Final = 22  # columns
LEARNING: Final = 0  # states of a forecast
TRUSTED: Final = 1
OFF: Final = 2
