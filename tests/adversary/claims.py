"""The claims of the docs and the README about those who break the protocol, each with its test.

A new promise in the docs gets a line here; `docs/claims.md` is made of them by
``python -m tests.adversary.claims`` and `python -m benchmarks adversary` runs them.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from qsfl_flower.testing import Claim, page

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "claims.md"
BEGIN = "<!-- made by python -m tests.adversary.claims -->"

CLAIMS = (
    Claim(
        "1 client",
        "claims a million right answers in evaluation",
        "the bound that is declared",
        "tests/strategies/test_evaluation.py::test_a_client_that_claims_a_million_right_answers_counts_its_bound",
        "evaluation.md",
    ),
    Claim(
        "1 client",
        "shares numbers of evaluation without the mods' bounds",
        "nothing is told that so many clients cannot have",
        "tests/strategies/test_evaluation.py::test_sums_that_so_many_clients_cannot_have_are_not_used",
        "evaluation.md",
    ),
    Claim(
        "server",
        "asks for the exact sum of evaluation again without one client",
        "nothing",
        "tests/strategies/test_sessions.py::test_an_exact_sum_over_one_client_less_is_refused_by_the_devices",
        "evaluation.md",
    ),
    Claim(
        "server",
        "asks twice for one round and purpose",
        "one answer",
        "tests/strategies/test_sessions.py::test_one_question_for_each_round_and_purpose",
        "evaluation.md",
    ),
    Claim(
        "server",
        "uses terms, plans and steps of one purpose for another",
        "a refusal",
        "tests/strategies/test_sessions.py::test_nothing_of_one_purpose_serves_another",
        "evaluation.md",
    ),
    Claim(
        "server",
        "asks for exact evaluation of numbers that are clipped ever more",
        "one sum",
        "tests/adversary/test_other_purposes.py::test_exact_sums_of_what_is_clipped_ever_more_are_refused",
        "evaluation.md",
    ),
    Claim(
        "server",
        "asks for a sum in which large numbers have no room, and sees who is silent",
        "nothing",
        "tests/adversary/test_other_purposes.py::test_numbers_beyond_the_room_of_a_sum_do_not_tell_on_their_client",
        "evaluation.md",
    ),
    Claim(
        "server",
        "asks for exact evaluation through masks, and through a committee without one client",
        "nothing",
        "tests/adversary/test_other_purposes.py::test_one_way_of_hiding_does_not_get_around_the_memory_of_the_other",
        "evaluation.md",
    ),
    Claim(
        "server",
        "asks for evaluation with noise that hides nothing, without one client",
        "nothing",
        "tests/adversary/test_other_purposes.py::test_noise_that_hides_nothing_does_not_free_the_cohort",
        "evaluation.md",
    ),
    Claim(
        "server",
        "asks for noisy evaluation until the noise averages out",
        "nothing beyond epsilon = 100",
        "tests/adversary/test_other_purposes.py::test_noise_does_not_average_out_over_many_questions",
        "evaluation.md",
    ),
    Claim(
        "server",
        "asks for exact evaluation by groups of one client, or weighed by a loss",
        "nothing",
        "tests/adversary/test_other_purposes.py::test_exact_sums_do_not_single_out_a_client",
        "evaluation.md",
    ),
    Claim(
        "server",
        "asks for exact evaluation within ever other bounds",
        "one sum",
        "tests/adversary/test_other_purposes.py::test_exact_sums_within_ever_other_bounds_are_refused",
        "evaluation.md",
    ),
    Claim(
        "server",
        "opens the norms of what clients evaluate",
        "nothing",
        "tests/adversary/test_other_purposes.py::test_norms_of_evaluation_stay_closed",
        "evaluation.md",
    ),
    Claim(
        "server",
        "compares models made so that some records have no score",
        "nothing of who has them",
        "tests/strategies/test_analytics.py::test_a_model_made_to_fail_on_some_records_does_not_tell_who_has_them",
        "analytics.md",
    ),
    Claim(
        "1 client",
        "claims that a model is a million times worse on its records",
        "its records, each by the largest difference",
        "tests/strategies/test_analytics.py::test_a_client_moves_a_comparison_no_further_than_its_records",
        "analytics.md",
    ),
    Claim(
        "1 client",
        "claims a million rows with a program of its own",
        "no answer is opened",
        "tests/strategies/test_analytics.py::test_a_client_that_claims_a_million_rows_gets_no_answer_through",
        "analytics.md",
    ),
    Claim(
        "1 client",
        "has a table of a million rows of its choice",
        "the rows that a client may have",
        "tests/strategies/test_analytics.py::test_a_client_moves_an_answer_no_further_than_the_rows_that_it_may_have",
        "analytics.md",
    ),
    Claim(
        "server",
        "asks the same question again, or another one",
        "what the client's own epsilon allows",
        "tests/strategies/test_analytics.py::test_the_same_question_again_is_refused_by_every_client",
        "analytics.md",
    ),
    Claim(
        "server",
        "asks a cohort that shrinks by one client",
        "nothing below the client's least cohort",
        "tests/strategies/test_analytics.py::test_a_shrinking_cohort_is_refused",
        "analytics.md",
    ),
    Claim(
        "server",
        "asks a question without noise or a secure sum",
        "nothing",
        "tests/strategies/test_analytics.py::test_a_client_answers_nothing_without_noise_and_a_secure_sum",
        "analytics.md",
    ),
    Claim(
        "server",
        "asks for a column that is not open to questions",
        "nothing",
        "tests/strategies/test_analytics.py::test_a_client_answers_no_question_about_a_closed_column",
        "analytics.md",
    ),
    Claim(
        "wire, active, quantum",
        "alters, cuts or forges any byte of a signed message",
        "no message counts",
        "tests/clients/test_authentication.py::test_no_changed_byte_of_a_signed_message_gets_in",
        "threat-model.md",
    ),
    Claim(
        "wire, active, quantum",
        "repeats or alters replies",
        "nothing counts twice",
        "tests/clients/test_authentication.py::test_an_altered_or_repeated_reply_does_not_count",
        "threat-model.md",
    ),
    Claim(
        "wire, active, quantum",
        "alters instructions, sends them again, late or in another run",
        "no client trains on them",
        "tests/clients/test_authentication.py::test_a_client_obeys_an_instruction_once_in_its_run_and_in_time",
        "threat-model.md",
    ),
    Claim(
        "wire, passive",
        "records encrypted replies",
        "no update",
        "tests/clients/test_authentication.py::test_what_is_sent_hides_the_update_when_encrypted",
        "threat-model.md",
    ),
    Claim(
        "wire, passive, later a quantum computer",
        "opens X25519 or ML-KEM of recorded traffic, one of them",
        "no session",
        "tests/crypto/test_handshake.py::test_one_broken_half_of_the_offer_does_not_give_the_session",
        "threat-model.md",
    ),
    Claim(
        "whoever stole a client's key",
        "opens recorded sessions with it",
        "no session",
        "tests/crypto/test_handshake.py::test_long_term_keys_do_not_open_recorded_traffic",
        "threat-model.md",
    ),
    Claim(
        "server",
        "plays a client or a committee member",
        "no statement of theirs",
        "tests/crypto/test_envelope.py::test_a_server_cannot_impersonate_a_client",
        "threat-model.md",
    ),
    Claim(
        "server",
        "enrols, replaces or withdraws somebody",
        "no entry of the roster",
        "tests/crypto/test_envelope.py::test_a_server_cannot_enrol_or_replace_anybody",
        "threat-model.md",
    ),
    Claim(
        "server",
        "shows an older roster, or two of one serial",
        "neither is accepted",
        "tests/crypto/test_roster.py::test_rollback_and_equivocation_are_refused",
        "threat-model.md",
    ),
    Claim(
        "1 client",
        "plays the server",
        "no client obeys",
        "tests/clients/test_authentication.py::test_a_client_cannot_play_the_server",
        "threat-model.md",
    ),
    Claim(
        "1 client",
        "answers from two or three nodes",
        "one reply a round counts",
        "tests/clients/test_authentication.py::test_two_nodes_with_one_identity_count_once",
        "threat-model.md",
    ),
    Claim(
        "1 client",
        "answers from three nodes of an asynchronous federation",
        "one place in a buffer",
        "tests/strategies/test_one_place.py::test_one_key_on_three_nodes_holds_one_place",
        "asynchrony.md",
    ),
    Claim(
        "1 client",
        "sends a reply of another run",
        "nothing counts",
        "tests/clients/test_authentication.py::test_a_reply_of_another_run_is_refused",
        "threat-model.md",
    ),
    Claim(
        "1 client",
        "sends NaN, infinity, other shapes, absurd values",
        "its own reply is rejected",
        "tests/strategies/test_stable.py::test_a_bad_reply_is_rejected_and_the_round_goes_on",
        "numerics.md",
    ),
    Claim(
        "1 client",
        "sends any content, validly signed",
        "its own reply is rejected",
        "tests/strategies/test_hostile_replies.py::test_no_content_ends_the_run",
        "numerics.md",
    ),
    Claim(
        "1 client",
        "sends escapes and false reasons",
        "printable text and known reasons",
        "tests/strategies/test_hostile_replies.py::test_text_from_clients_is_neutralized",
        "numerics.md",
    ),
    Claim(
        "1 client",
        "claims a huge number of examples",
        "at most half of the mean",
        "tests/strategies/test_stable.py::test_a_huge_claim_does_not_own_the_mean",
        "numerics.md",
    ),
    Claim(
        "1 client",
        "claims any loss",
        "no halt, rollback or slower step",
        "tests/strategies/test_divergence.py::test_one_claimed_loss_neither_halts_nor_slows_nor_rolls_back",
        "attacks-and-detection.md",
    ),
    Claim(
        "1 client",
        "comes back on a new node",
        "its quarantine stays",
        "tests/strategies/test_detection.py::test_a_quarantine_outlasts_a_new_node_where_names_are_proven",
        "attacks-and-detection.md",
    ),
    Claim(
        "1 client",
        "sends integer arrays and counters of its choice under a robust rule",
        "the honest range",
        "tests/strategies/test_robust.py::test_one_liar_cannot_set_counters_and_flags",
        "robustness.md",
    ),
    Claim(
        "1 device of a virtual host",
        "writes into what it was sent, sends a malformed part",
        "its own reply alone",
        "tests/simulations/test_fleet.py::test_a_device_cannot_change_what_later_devices_get",
        "devices.md",
    ),
    Claim(
        "f clients",
        "send the worst updates that a search finds",
        "the bound of the rule",
        "tests/robust/test_rules.py::test_no_liars_move_the_result_far_from_the_honest_updates",
        "robustness.md",
    ),
    Claim(
        "server",
        "reads all messages of secure sums",
        "no update, norm, loss or count of one client",
        "tests/strategies/test_secure_sum.py::test_no_update_norm_or_statistic_reaches_the_server",
        "secure-aggregation.md",
    ),
    Claim(
        "server",
        "asks one device for anything: plans, terms, message types",
        "nothing that its policy forbids",
        "tests/adversary/test_search.py::test_a_device_sends_nothing_that_its_policy_forbids",
        "node-policy.md",
    ),
    Claim(
        "server",
        "promises privacy that the plan does not keep",
        "no training",
        "tests/clients/test_instructions.py::test_a_promise_that_the_plan_does_not_keep_is_refused_before_training",
        "node-policy.md",
    ),
    Claim(
        "server",
        "asks for train.default, train.lora",
        "the same as train",
        "tests/clients/test_instructions.py::test_every_action_of_training_is_training",
        "node-policy.md",
    ),
    Claim(
        "server",
        "asks a device with 'hidden only' without a secure sum",
        "nothing",
        "tests/clients/test_instructions.py::test_hidden_only_sends_nothing_in_the_clear",
        "node-policy.md",
    ),
    Claim(
        "server",
        "asks again and again, in new runs too",
        "the releases that the policy allows",
        "tests/clients/test_instructions.py::test_releases_are_counted_whatever_is_promised_anew",
        "node-policy.md",
    ),
    Claim(
        "server",
        "says terms with small cohorts, few bits, weights, openings of its choice",
        "a refusal",
        "tests/clients/test_policy.py::test_terms_that_protect_less_are_refused",
        "node-policy.md",
    ),
    Claim(
        "server + 1 client",
        "gives members any terms, shares, orders and repetitions",
        "one sum a round of at least the least cohort",
        "tests/adversary/test_search.py::test_members_open_one_sum_a_round_and_no_secret",
        "secure-aggregation.md",
    ),
    Claim(
        "server + 1 client",
        "asks members again, with fresh shares of the client each time",
        "one quadratic equation about each update",
        "tests/strategies/test_lying_server.py::test_fresh_shares_of_a_helping_client_open_one_equation_about_each_update",
        "secure-aggregation.md",
    ),
    Claim(
        "server + c clients",
        "asks members in groups, again, about fresh shares",
        "c quadratic equations about each update",
        "tests/secure/test_questions.py::test_c_colluding_clients_get_c_equations_about_each_honest_update",
        "secure-aggregation.md",
    ),
    Claim(
        "server + t - 1 members",
        "asks two halves of the committee for two sums",
        "one of them",
        "tests/secure/test_terms.py::test_two_questions_never_open_however_the_members_are_divided",
        "secure-aggregation.md",
    ),
    Claim(
        "server",
        "says a quorum by which two sums could open",
        "a refusal",
        "tests/secure/test_terms.py::test_a_quorum_by_which_two_sums_could_open_is_refused_by_name",
        "secure-aggregation.md",
    ),
    Claim(
        "server + 1 client",
        "asks devices for any step of masks, in any order, with any terms, survivors and packets",
        "sums of at least the least cohort",
        "tests/adversary/test_search.py::test_masks_open_no_sum_of_few",
        "secagg.md",
    ),
    Claim(
        "wire, active",
        "loses, delays, repeats, exchanges and alters messages over whole rounds",
        "no update; the run ends, and what was rejected is named",
        "tests/adversary/test_search.py::test_whole_rounds_end_and_tell_nothing_of_one_client",
        "threat-model.md",
    ),
    Claim(
        "server + t - 1 members",
        "look at all that they hold and see",
        "the sum (and the distances that the terms open)",
        "tests/secure/test_view.py::test_sums",
        "secure-aggregation.md",
    ),
    Claim(
        "server",
        "replays shares of an earlier buffer",
        "nothing",
        "tests/strategies/test_secure_async.py::test_a_server_that_replays_shares_gets_nothing",
        "secure-aggregation.md",
    ),
    Claim(
        "1 client",
        "deals shares that do not fit",
        "it is named and its update left out",
        "tests/strategies/test_secure_sum.py::test_a_client_that_deals_inconsistent_shares_is_named_and_dropped",
        "secure-aggregation.md",
    ),
    Claim(
        "1 member",
        "lies about its sums",
        "it is named and corrected",
        "tests/strategies/test_secure_sum.py::test_a_member_that_lies_is_named_and_corrected",
        "secure-aggregation.md",
    ),
    Claim(
        "server",
        "sends all but one client other local arrays, and an honest instruction in the next round",
        "the devices begin with those of the honest one",
        "tests/strategies/test_lying_server.py::test_local_arrays_carry_no_other_model_past_the_digest",
        "threat-model.md",
    ),
    Claim(
        "server",
        "has all but one node with 'hidden only' train for something else in an earlier round",
        "nothing of that round is in a later sum",
        "tests/strategies/test_lying_server.py::test_nothing_that_earlier_training_left_behind_decides_what_a_hidden_sum_shows",
        "node-policy.md",
    ),
    Claim(
        "server",
        "has devices with hidden or noisy updates refuse or fail, and reads what they say",
        "a listed reason, and no word of the app",
        "tests/clients/test_instructions.py::test_an_app_that_refuses_or_fails_tells_its_reason_alone",
        "node-policy.md",
    ),
    Claim(
        "server",
        "weighs a hidden sum by a loss that a made-up head has on one client's records alone",
        "refused before training",
        "tests/clients/test_instructions.py::test_a_server_does_not_choose_whose_update_a_hidden_sum_shows",
        "node-policy.md",
    ),
    Claim(
        "server",
        "asks one client for another model or action under masks",
        "no masked vector",
        "tests/strategies/test_masked_attackers.py::test_a_server_that_asks_one_client_for_something_else_gets_no_masked_vector",
        "secagg.md",
    ),
    Claim(
        "server",
        "runs a masked round again without one client",
        "nothing",
        "tests/strategies/test_masked_attackers.py::test_a_round_that_is_run_again_without_one_client_gets_nothing",
        "secagg.md",
    ),
    Claim(
        "server",
        "tells clients two lists of survivors",
        "one sum",
        "tests/secure/pairwise/test_protocol.py::test_what_two_lists_of_survivors_release_opens_only_one",
        "secagg.md",
    ),
    Claim(
        "server",
        "reads all messages of masked sums",
        "no update or statistic of one client",
        "tests/strategies/test_masked_sum.py::test_nothing_of_one_client_reaches_the_server",
        "secagg.md",
    ),
    Claim(
        "server",
        "puts keys of its own among those of clients",
        "no masked vector",
        "tests/secure/pairwise/test_protocol.py::test_a_lying_server_cannot_insert_its_own_keys",
        "secagg.md",
    ),
    Claim(
        "1 client",
        "deals wrong edge keys, or blames an honest client",
        "one lost round; nobody honest is excluded",
        "tests/strategies/test_masked_attackers.py::test_one_liar_costs_one_round_and_nobody_honest_is_excluded",
        "secagg.md",
    ),
    Claim(
        "2 clients",
        "lie under masks in another way every round",
        "three lost rounds, garbage apart; nobody honest is excluded",
        "tests/strategies/test_masked_attackers.py::test_two_liars_that_change_their_ways",
        "secagg.md",
    ),
    Claim(
        "2 clients",
        "push honest clients out of sums with packets that these cannot use, one silent",
        "one lost round",
        "tests/strategies/test_masked_attackers.py::test_liars_do_not_push_honest_clients_out_by_packets_that_these_cannot_use",
        "secagg.md",
    ),
    Claim(
        "reader of the models",
        "looks for a record or client in buffers, counters and metrics",
        "nothing beside the noisy vector",
        "tests/strategies/test_nothing_beside.py::test_one_unit_moves_nothing_beside_the_mechanism",
        "privacy.md",
    ),
    Claim(
        "server, with all clients but one",
        "compares runs with and without a client (audit)",
        "epsilon of the accountant",
        "tests/strategies/test_federation_audit.py::test_no_claim_is_broken",
        "privacy.md",
    ),
    Claim(
        "server",
        "reads sums under DistributedDP while clients drop out",
        "the noise of the accountant",
        "tests/strategies/test_distributed_dp.py::test_every_sum_carries_the_noise_whoever_drops_out_or_adds_none",
        "privacy.md",
    ),
    Claim(
        "1 client",
        "sends what it likes under DistributedDP",
        "its norm, with room for noise",
        "tests/strategies/test_distributed_dp.py::test_one_client_moves_the_step_no_further_than_its_bound_and_the_room_for_noise",
        "privacy.md",
    ),
    Claim(
        "1 client",
        "searches for the records that move a release most",
        "the sensitivity of the proof",
        "tests/privacy/test_proof.py::test_no_neighbours_move_a_release_further_than_is_claimed",
        "privacy-proof.md",
    ),
    Claim(
        "anybody, or nobody",
        "kills the server at any point",
        "epsilon reported is at least what devices sent; no update counts twice",
        "tests/simulations/test_kills.py::test_a_killed_server_forgets_no_privacy_loss_and_counts_no_update_twice",
        "privacy.md",
    ),
    Claim(
        "somebody with write access to files",
        "crafts key files, checkpoints, budgets, run folders",
        "an error of ours, bounded in time and memory",
        "tests/fuzzing/test_decoders.py::test_nothing_but_errors_of_ours",
        "threat-model.md",
    ),
    Claim(
        "somebody with write access to files",
        "crafts run folders and configurations",
        "an error of ours, bounded in time and memory",
        "tests/simulations/test_crafted_folders.py::test_a_small_configuration_cannot_become_gigabytes",
        "threat-model.md",
    ),
    Claim(
        "anybody on the network",
        "calls Ray while a simulation runs",
        "nothing without the run's token",
        "tests/simulations/test_ray_access.py::test_nobody_without_the_token_reaches_a_simulation",
        "threat-model.md",
    ),
)


def is_slow(test: str) -> bool:
    """Tell whether a test or its file is marked slow; raise if there is no such test."""
    path, name = test.split("::")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    (found,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name)
    marks = [
        n.value for n in tree.body if isinstance(n, ast.Assign) and "pytestmark" in ast.dump(n)
    ]
    return any("slow" in ast.unparse(mark) for mark in (*found.decorator_list, *marks))


def whole_page() -> str:
    """Return what docs/claims.md has to contain."""
    head, _, _ = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    slow = [claim.test for claim in CLAIMS if is_slow(claim.test)]
    return f"{head}{BEGIN}\n\n{page(CLAIMS, slow)}"


if __name__ == "__main__":
    PAGE.write_text(whole_page(), encoding="utf-8")
    sys.exit(0)
