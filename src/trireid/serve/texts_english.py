"""The texts of the pages in English."""

from __future__ import annotations

ENGLISH = {
    # On every page
    "skip": "Skip to the content",
    "navigation": "Pages",
    "language": "Language",
    "logout": "Log out",
    "nav_search": "Search",
    "nav_gallery": "Gallery",
    "nav_add": "Add",
    "nav_changes": "Changes",
    "nav_report": "Report",
    "nav_api": "API",
    "spectrum_rgb": "visible light",
    "spectrum_nir": "near-infrared",
    "spectrum_tir": "thermal",
    "picture_of": "{what}, {modality} image",
    "picture_absent": "{what} has no {modality} image",
    "absent": "none",
    "picture_not_shown": "The {modality} image of {what} is not shown",
    "not_shown": "not shown",
    "not_shown_no_root": (
        "Some images are not shown: the service reads image files only below the root of the gallery, and this gallery "
        "has no root. The root is set when a gallery is made: trireid gallery create GALLERY RUN --root FOLDER."
    ),
    "not_shown_outside_root": (
        "Some images are not shown: the service reads image files only below the root of the gallery, and these files "
        "are elsewhere. The root is set when a gallery is made: trireid gallery create GALLERY RUN --root FOLDER."
    ),
    "not_shown_no_file": "Some images are not shown: their files were moved or deleted.",
    "camera": "Camera",
    "scene": "Scene",
    "time": "Time (UTC)",
    "key": "Key",
    "identity": "Identity",
    "no_identity": "no identity",
    "not_known": "not known",
    "any": "any",
    "save": "Save",
    "undo": "Undo",
    "undo_label": "Undo: {text}",
    # Errors
    "problem_title": "This did not work",
    "problem_status": "Nothing was changed. (Status {status})",
    "problem_unsure": ("If this was a change, look whether it was made before you repeat it. (Status {status})"),
    "problem_413": "Whoever starts the service can change its limits.",
    "problem_429": "Others are using the service right now; try again in a moment.",
    "go_back": "Go back",
    # Login
    "login_title": "Log in",
    "login_note": "This service needs the token that it was started with. The browser stays logged in for 12 hours.",
    "login_wrong": "This is not the token.",
    "login_token": "Token",
    "login_button": "Log in",
    # Search
    "search_title": "Search",
    "query_images": "Images of one object",
    "drop_here": "Drop one, two or three images here, or choose files.",
    "drop_note": "One image per spectrum. A file with rgb, nir or tir in its name is assigned automatically.",
    "is_modality": "{modality}",
    "move_to": "move to {modality}",
    "move_label": "Spectrum of the image in {modality}",
    "clear": "Remove",
    "clear_label": "Remove the {modality} image",
    "too_many_files": "At most three images, one per spectrum; the others were left out.",
    "not_an_image": "This is not an image file: ",
    "no_preview": "no preview of this format",
    "preview_of": "The chosen {modality} image",
    "search_button": "Search",
    "searching": "Searching …",
    "searched_items": "in {count} items",
    "or_item": "Or search with an item of the gallery:",
    "or_images": "Search with images instead",
    "search_options": "With options …",
    "or_item_link": "choose one",
    "empty_gallery": "The gallery has no items yet.",
    "ranking_options": "Ranking and threshold",
    "rank_by": "Rank",
    "by_identity": "identities",
    "by_item": "single items",
    "reduce": "Distance of an identity",
    "reduce_best": "its nearest item",
    "reduce_mean": "mean of its items",
    "top": "Matches shown",
    "exclude": "Leave out",
    "exclude_none": "nothing",
    "exclude_camera": "the same identity from the same camera",
    "exclude_scene": "the same identity from the same scene",
    "exclude_cross_camera": "everything from the same camera",
    "threshold_title": "Known or unknown",
    "fmr": "False matches allowed",
    "no_threshold": "no threshold",
    "rate_option": "1 in {number}",
    "threshold": "Or: largest distance (0 to 2)",
    "no_rate": "The calibration has too few identities for any threshold.",
    "not_decided": "No threshold was used: {line}",
    "not_calibrated": (
        "This gallery has no calibration, so no distance can be called near enough. To calibrate it: trireid "
        "calibrate RUN, then start the service with --calibration RUN/calibration.json."
    ),
    "about_query": "About these images",
    "about_query_note": (
        "Not needed. Used to leave items out, by models that learned cameras, and kept with the images if they "
        "are added to the gallery."
    ),
    "filter_title": "Filters",
    "only_cameras": "Only these cameras",
    "only_identity": "Only this identity",
    "only_presence": "Only items with exactly these spectra",
    "only_after": "From (UTC)",
    "only_before": "Before (UTC)",
    # Result
    "result_title": "Result",
    "verdict_known": "Probably {identity}",
    "verdict_known_unnamed": "Probably an item without an identity",
    "verdict_unknown": "Unknown",
    "verdict_ranked": "Nearest in the gallery",
    "verdict_empty": "No matches",
    "verdict_known_note": "The nearest match passes the threshold: {threshold}.",
    "verdict_unknown_note": "Nothing in the gallery is near enough: {threshold}. The nearest are below.",
    "verdict_ranked_note": "No threshold was set, so nothing is called known or unknown.",
    "verdict_open_note": (
        "The threshold ({threshold}) is not calibrated for the spectra that these matches were compared in, so the "
        "query is called neither known nor unknown."
    ),
    "verdict_empty_note": "No item fulfils the conditions, or all matches were rejected.",
    "threshold_distance": "distance {value} at most",
    "query": "Query",
    "query_is_item": "This query is the item",
    "new_search": "New search",
    "condition_top": "{count} matches",
    "condition_reduce": "mean distance of each identity",
    "condition_exclude": "left out: {rule}",
    "condition_filter": "filtered: {text}",
    "kept_title": "Kept patches of the query",
    "kept_note": (
        "Kept patches are shown unchanged. Dropped patches are dimmed, and tinted more strongly the more weight they "
        "have in the fused token."
    ),
    "kept_alt": "Kept patches of the query, {modality}",
    "no_explaining": "Kept patches and reasons are not available: this service computes with an exported model.",
    "matches_by_identity": "Identities, nearest first",
    "matches_by_item": "Items, nearest first",
    "match_number": "Match {rank}",
    "no_matches": "There is nothing to show.",
    "compared": "compared: {modalities}",
    "compared_nothing": "no spectrum in common",
    "distance": "distance {value}",
    "rate_words": "at most 1 false match in {number}",
    "rate_none": "no false match at this distance in the calibration",
    "rate_most": "most other objects are this near",
    "same_object": "Same object: {rate}",
    "near_enough": "Also near enough: {rate}",
    "verdict_several": "{count} identities pass it, so this threshold alone does not tell them apart.",
    "not_near_enough": "Not near enough: {rate}",
    "other_rate": "{rate}",
    "rate_unknown": "error rate not known for this pair of spectra",
    "within_distance": "Within the distance of {value}",
    "beyond_distance": "Beyond the distance of {value}",
    "not_comparable": "Cannot be compared: no spectrum in common",
    "not_calibrated_short": "distance {value}, not calibrated",
    "chance": "Among {count} items of other objects, up to about {expected} are this near by chance.",
    "accept": "Same object",
    "reject": "Not the same",
    "relabel": "Relabel",
    "why": "Why?",
    "identity_of": "Identity of {key}",
    "name_for_both": "Name for both",
    "new_identity_title": "New identity",
    "new_identity_label": "None of these? Name of the new identity",
    "new_identity_button": "Add as new identity",
    "hidden_title": "Rejected for this query",
    "hidden_note": "They stay in the gallery unchanged, and other searches show them.",
    "show_again": "Show again",
    "what_decisions_do": "What these decisions do",
    "accept_means": (
        "Adds the query to the gallery as a further item of this identity, with its images as thumbnails. A "
        "query that is an item already gets the identity. If the match has no identity, both get the name that "
        "you write."
    ),
    "reject_means": "Hides this match for this query. Nothing in the gallery changes.",
    "relabel_means": "Changes the identity of the matched item, not of the query. Empty: not known.",
    "new_identity_means": (
        "Adds the query to the gallery as the first item of an identity that the gallery does not have."
    ),
    "undo_means": "Takes a change back, also after a restart of the service. The last 50 are kept:",
    # Why
    "why_title": "Why this match?",
    "back_to_result": "Back to the result",
    "why_note": "What was compared: {modalities}.",
    "row_image": "Image",
    "row_kept": "Kept patches",
    "row_heat": "Supports the match",
    "side_match": "Match {key}",
    "from_thumbnail": (
        "Its image files are not available, so this is computed from its thumbnails: patches can differ a little."
    ),
    "kept_count": "{kept} of {whole}",
    "map_alt": "{row} of {what}, {modality}",
    "why_reading_title": "How to read this",
    "why_reading_heat": (
        "Bright places raise the similarity of this query and this match the most (Grad-CAM of their cosine, "
        "each image scaled by itself)."
    ),
    "why_no_heat": (
        "No map of what supports the match: query and match have the same feature, or the package grad-cam is missing."
    ),
    "why_reading_kept": "Kept patches are those that reach the end of the model; dropped ones are dim and tinted.",
    "why_keeps_all": "This model keeps every patch.",
    "why_reading_limits": (
        "The maps show what the model looks at. They do not prove that it is the same object: look at the images."
    ),
    # Gallery
    "gallery_title": "Gallery",
    "gallery_numbers": "{items} items, {identities} identities, {cameras} cameras.",
    "counted_from": "(identities and cameras of the first {count} items)",
    "browse_by": "Browse by",
    "view_items": "Items",
    "view_identities": "Identities",
    "view_cameras": "Cameras",
    "view_days": "Days",
    "view_unlabelled": "Without an identity",
    "filter_button": "Filter",
    "filter_clear": "Show all",
    "items_found": "{count} items",
    "no_items": "There are no such items.",
    "pages": "Pages of this list",
    "first_page": "First page",
    "next_page": "Next page",
    "example_of": "An item of {name}",
    # Item
    "images": "Images",
    "facts": "Facts",
    "search_with_item": "Search with this item",
    "identity_or_nothing": "Identity (empty: not known)",
    "remove_title": "Remove",
    "remove_note": (
        "Removes the item with its feature from the gallery. Image files outside of the gallery stay. It can be undone."
    ),
    "remove_button": "Remove this item",
    # Changes
    "changes_title": "Changes",
    "changes_note": (
        "The last {count} changes made on these pages. Each can be undone as long as the item was not changed again. "
        "Changes through the API are not listed."
    ),
    "no_changes": "Nothing was changed yet.",
    "done_accept": "Accepted: {key} is {identity}",
    "done_identity": "New identity {identity} with {key}",
    "done_label": "Labelled {key} as {identity}",
    "done_unlabel": "Removed the identity of {key}",
    "done_remove": "Removed {key}",
    "done_add": "Added {key}",
    "undone_accept": "Undone: accepted {key} as {identity}",
    "undone_identity": "Undone: new identity {identity} with {key}",
    "undone_label": "Undone: labelled {key} as {identity}",
    "undone_unlabel": "Undone: removed the identity of {key}",
    "undone_remove": "Undone: removed {key}",
    "undone_add": "Undone: added {key}",
    # Add
    "add_title": "Add to the gallery",
    "add_one": "One item",
    "key_needed": "Key (unique)",
    "add_button": "Add",
    "adding": "Adding …",
    "add_many": "A folder or a table",
    "many_script": (
        "This part needs JavaScript. Without it: trireid embed RUN FOLDER --out items.safetensors, then trireid "
        "gallery add, while the service is stopped."
    ),
    "many_note": (
        "Items whose key the gallery has are replaced. Added items can be removed again below, as long as this "
        "page is open; they are not in the list of changes."
    ),
    "many_revert": "Remove the added items again",
    "many_removed": "{removed} of {count} added items were removed again.",
    "many_folder": (
        "A folder with one sub-folder per spectrum; images of the same name are one item, and the name is its key:"
    ),
    "many_table": "Or a folder and a CSV table that names files in it, with some of these columns:",
    "many_choose_folder": "Folder",
    "many_choose_table": "Table (optional)",
    "many_camera": "Camera of all items (optional)",
    "many_start": "Add all",
    "many_stop": "Stop",
    "many_progress": "Items added",
    "many_faults": "Not added",
    "many_items": "{count} items are ready.",
    "many_none": (
        "No images were found: sub-folders must be called rgb, nir or tir (or RGB, NI, TI), or a table must name "
        "the files."
    ),
    "many_done": "{done} of {count} done: {added} added, {replaced} replaced, {failed} not added.",
    "many_failed": "{key}: {line}",
    "many_missing_file": "the table names {file}, which is not in the folder",
    "many_columns": "The table needs a header with at least one of the columns rgb, nir, tir.",
    "many_stopped": "Stopped.",
    "many_too_large": "its images have more bytes than the service takes at once",
    "many_unused": "{count} images are in no sub-folder of a spectrum, or not named in the table, and are left out.",
    "many_network": "the service did not answer",
    "many_duplicate": "this key occurs twice in your choice",
    "many_time": "its time is neither a number of seconds nor a date",
    # Report
    "no_report": "There is no report of this run yet. To make it:",
    "no_report_then": (
        "Then load this page again. A service that was started with a single file looks for it beside that file."
    ),
}
