"""Turns a wish told in English into what to remove from a photo and what to keep.

Ours, not the paper's: rules decide whether something is wished away, wished kept, complained of or
only described, and a lexicon names it. InstructIR (Conde et al., ECCV 2024) trains a classifier of
sentence embeddings instead; such embeddings hardly tell "remove the rain" from "do not remove the
rain", and know one intent a sentence.
"""

import re
import unicodedata
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from transformers.feature_extraction_utils import FeatureExtractionMixin

# label of the restorer -> how people call it, commas between phrases. Plurals of nouns and forms of
# verbs follow by themselves.
# - nouns: what is wished away or kept.
# - complaints: what the photo is; asks for removal, but not after "not".
# - scene nouns, scene complaints: such as a mere description of a scene may hold too.
# - verbs: what removes it.
# - comparatives: what the photo should become.
# - virtues: what the photo is not.
# - aspects: what is bad, missing or to be bettered.
# - hints: complaints that count only where nothing else is named.
FAULTS = {
    "noise": {
        "nouns": "tiny spots, small spots, little spots, white spots, colored spots, noise, "
        "grain, film grain, graininess, speckle, speck, dots, static, salt and pepper, hot "
        "pixels, sensor noise, image noise, color noise, colour noise, chroma noise, luminance "
        "noise, noisiness, granularity",
        "complaints": "speckling, noisier, grainier, noisy, grainy, granular, gritty, speckled, "
        "speckly, grained, high iso, iso",
        "verbs": "denoise, degrain, noise reduction, noise removal",
        "comparatives": "less noisy, cleaner",
    },
    "rain": {
        "nouns": "raindrop, rain drop, rain streak, streak of rain, streak of water, water drop, "
        "water streak, droplet, drops, streaks, wet weather",
        "complaints": "poured, pouring rain, it was pouring, it is pouring, cats and dogs",
        "scene nouns": "rain, rainfall, drizzle, downpour, rain shower, rainstorm, rainwater",
        "scene complaints": "rainier, rainy, raining, rained, drizzling, drizzly, pouring",
        "verbs": "derain, unrain",
    },
    "haze": {
        "nouns": "veil, haziness, fogginess, mistiness",
        "complaints": "milky, washed out",
        "scene nouns": "haze, fog, mist, smog, smoke, murk",
        "scene complaints": "foggier, hazier, mistier, hazy, foggy, misty, smoggy, smoky, murky",
        "verbs": "dehaze, defog, demist, unfog, haze removal",
    },
    "blur": {
        "nouns": "fuzziness, smudge, smudginess, blur, motion blur, camera shake, shake, "
        "shakiness, blurriness, smear, ghosting, motion, blurring, unsharpness, camera motion",
        "complaints": "blurrier, shakier, smudgy, smudged, too slow, slow shutter, blurry, "
        "blurred, shaky, smeared, smeary, unsharp, fuzzy, jittery, wobbly, shook, shaken, "
        "shaking, shakes, trembled, trembling, slipped, wobbled, jerked, jolted, moved, too fast, "
        "was moving, were moving, kept moving, unsteady",
        "verbs": "deblur, unblur, sharpen, stabilize, stabilise, sharpen up, crispen",
        "comparatives": "sharper, crisper, steadier",
        "virtues": "sharp, crisp, steady, razor sharp, pin sharp",
        "aspects": "sharpness, crispness, steadiness",
    },
    "defocus": {
        "nouns": "defocus, misfocus, back focus, front focus, backfocus, bokeh, defocus blur, "
        "lens blur, focus blur, out of focus blur, unfocus, focus problem, focus error",
        "complaints": "out of focus, camera focused on, focused on the background, unfocused, "
        "defocused, misfocused, unfocussed, not in focus, soft focus, too soft, focused on the "
        "wrong, focus on the wrong, focus is on, focus was on, focused wrong, focused wrongly, "
        "focused badly, focused behind",
        "verbs": "refocus",
        "virtues": "into focus, in focus, focused, focussed, well focused",
        "aspects": "focus, focusing, focussing, autofocus, auto focus, lens",
    },
    "lowlight": {
        "nouns": "darkness, blackness, underexposure, low light, lowlight, gloom, dimness",
        "complaints": "underexposed, under exposed, too dark, darkish, low lit, pitch black, "
        "almost black, nearly black, completely black, all black, taken at night, shot at night, "
        "night shot, night photo, night picture, was night, nearly night, almost night, unlit, "
        "black hole",
        "scene complaints": "darker, dimmer, dark, dim, gloomy, dusky",
        "verbs": "brighten, lighten, relight, illuminate, light up, light it up, brighten up, "
        "lighten up, low light enhancement, turn the light on, turn the lights on, turn on the "
        "light, turn on the lights, turn lights on, switch the light on, switch the lights on, "
        "switch on the light, switch on the lights",
        "comparatives": "brighter, lighter, less dark, better lit",
        "virtues": "bright, well lit, light enough, bright enough, well exposed, lit",
        "aspects": "light, lights, lighting, brightness, exposure, illumination, flash, daylight",
        "scene hints": "at night, by night, during night, during the night, in the night",
        "hints": "see a thing, see anything, see much, see nothing, can not see, could not see, "
        "hardly see, barely see, hardly visible, barely visible, not visible, can not make out, "
        "could not make out, make out",
    },
    "jpeg": {
        "nouns": "jpeg artifact, jpeg artefact, jpg artifact, jpg artefact, compression artifact, "
        "compression artefact, artifact, artefact, jpeg, jpg, compression, blocks, squares, block "
        "artifact, blockiness, jpeg noise, jpeg block, compression noise, mosquito noise, "
        "macroblock, jpeg compression, blocking, little squares, jpegs, jpeg damage",
        "complaints": "blocky, compressed, whatsapp, messenger, overcompressed, recompressed, "
        "lossy, artifacted, artifacting",
        "verbs": "dejpeg, deblock, decompress, artifact removal",
    },
    "downup": {
        "nouns": "pixels, pixelation, pixelization, pixelisation, low resolution, low res, "
        "lowres, upscaling artifact, big pixels, visible pixels, jaggies, large pixels, huge "
        "pixels",
        "complaints": "pixelated, pixellated, pixelized, pixelised, pixely, pixelly, too small, "
        "thumbnail, jagged, upscaled, upsampled, blown up, enlarged, tiny picture, tiny image, "
        "tiny photo, low definition, low quality resolution, stretched",
        "verbs": "upscale, upsample, enlarge, super resolve, superresolve, super resolution, "
        "depixelate, upres, uprez",
        "comparatives": "higher resolution, more pixels, it bigger, it larger, photo bigger, "
        "picture bigger, image bigger, this bigger, bigger version, larger version",
        "virtues": "high resolution, high res, hd, full hd",
        "aspects": "size, resolution, pixel count",
    },
}
# How what is understood is told.
NAMES = {"lowlight": "darkness", "jpeg": "JPEG artifacts", "downup": "low resolution"}

# The grammar of wishes: kind -> phrases; a star before a verb stands for its forms.
GRAMMAR = {
    # wishes something away; what is "not" removed stays
    "remove": "keep out, keep away, spare me, to much, to many, take, taking, *remove, "
    "*eliminate, *delete, *erase, *lose, *drop, *strip, *kill, *reduce, *lessen, *minimize, "
    "*minimise, *suppress, *cut, *filter, *wipe, *dissolve, *banish, *ditch, *scrap, *undo, "
    "*weaken, *discard, *destroy, *dump, *subtract, *exclude, *dispose of, lost, *clear the, "
    "*clear up, *clear away, *clear this, *clear that, *clear all, *clear off, *clear out, *clear "
    "any, cut out, undone, *take out, took out, taken out, *take away, took away, taken away, "
    "*take off, taken off, *get rid of, got rid of, rid of, *throw out, thrown out, do without, "
    "*leave out, left out, *tone down, *turn down, down with, away with, *hate, *dislike, "
    "*loathe, *detest, can not stand, can not bear, sick of, tired of, fed up with, not happy "
    "with, unhappy with, not a fan of, bothered by, annoyed by, against, spoiled by, ruined by, "
    "less, fewer, too much, too many, so much, no more, enough of, enough with, free of, free "
    "from, *stop, *lift, *smooth, *smooth out, *wash off, *wash away, *hide, *pull out, *edit "
    "out, *see through, *iron out, *scrub, *purge, *vacuum, minus, *combat, *fight, *rub out, "
    "*brush out, *cancel, *counter, *counteract, *decrease, *diminish, *lower",
    # betters something; what is "not" touched stays
    "fix": "*fix, *correct, *repair, *clean, *clean up, *improve, *cure, *treat, *heal, *handle, "
    "*tackle, *address, *deal with, dealt with, do something about, *take care of, *see to, *work "
    "on, *help with, *sort out, *mend, *rescue, *save, *solve, *restore, *adjust, *compensate, "
    "*compensate for, *touch, *change, *alter, *modify, *mess with, *bother, *bother with, *edit, "
    "*process, *enhance, *retouch, *tidy, *polish, do anything about, *sort, *attend to, focus "
    "on, focusing on, *concentrate on, *tamper with, *play with, *resolve, *beautify, *revive, "
    "*refresh, *optimize, *optimise, *recover, better, *upgrade, *salvage, *help",
    # more of a fault means that it stays, more of an aspect that the fault goes
    "more": "more, *increase, *boost, *raise, *add, extra, *bring up, *turn up, *strengthen, "
    "*amplify, *emphasize, *emphasise, some more, *maximize, *maximise, *pump up",
    "keep": "not worry about, no worries about, no objection to, no objections to, steer clear "
    "of, stay clear of, disregard, *overlook, let alone, same amount of, same level of, *keep, "
    "kept, leave, leaving, *preserve, *retain, *maintain, *spare, *love, *enjoy, *adore, *prefer, "
    "*appreciate, *cherish, fond of, happy with, fine with, ok with, okay with, cool with, good "
    "with, *hold on to, *respect, *protect, *conserve, *accept, *tolerate, *live with, hands off, "
    "stay away from, *ignore, *skip, forget about, i like, we like, do like, i also like, i quite "
    "like, i do like, i rather like, *admire, *cling to, *save the mood of, a fan of, *let be, "
    "*allow, *permit, i liked, we liked, careful with, *refrain from removing, *refrain from, "
    "*avoid removing, *avoid touching, *avoid changing, *avoid",
    "mind": "*mind, care about, *object to, object",
    "want": "want, wants, wanted, wish, wish for, would like, would love, need, needs, hope, hope "
    "for, should, ought to, hoping, wishing, would prefer, would rather have, should be, should "
    "have, supposed to be, looking for, must be",
    "make": "bring, make, making, render, get",
    "bad": "disturb, distract, hurt, annoy, annoys, hinder, hinders, irritate, forgot, bad, poor, "
    "wrong, off, terrible, awful, horrible, missing, missed, misses, lacks, lack, lack of, "
    "lacking, not enough, insufficient, too little, ugly, annoying, disturbing, spoils, spoil, "
    "spoiled, spoilt, ruins, ruined, ruin, problem, problems, bother me, bothers me, covers, "
    "distracts, distracting, disturbs, issue, issues, broken, failed, unpleasant, a shame, "
    "hopeless, dreadful, nasty, little, badly, hurts, a pity, irritating, irritates, troubles, "
    "poorly, faulty, lousy, rubbish, unbearable, weak, gets in the way, disappear in, disappears "
    "in, disappeared in, vanish in, vanishes in, hidden by, hidden in, hidden behind, covered in, "
    "covered by, covered with, lost in, shrouded in, unwanted, undesirable, too strong, too "
    "heavy, too low, low",
    # said after what it is about
    "go": "out, away, gone, go, goes, went, going, vanish, vanishes, vanished, disappear, "
    "disappears, disappeared, begone, disappearing, history, less visible, be off",
    "stay": "is wanted, are wanted, is needed, are needed, is desired, are desired, is meant, are "
    "meant, meant to be, not matter, is what makes, are what make, are what makes, the point, by "
    "design, deliberately, gives it, gives the, sets the mood, sets the tone, creates, no "
    "problem, no issue, no bother, is important, untouchable, sacred, have its place, be there, "
    "be here, be in there, be in it, be seen, stay, stays, stayed, staying, remain, remains, "
    "remained, remaining, kept in, on purpose, intended, intentional, deliberate, belongs, "
    "belong, part of the, part of it, part of, welcome, suits, adds to, adds, essential, "
    "important, untouched, alone, allowed, as it is, as they are, the way it is, the way they "
    "are, matters, intact",
    "praise": "natural, charming, impressive, stunning, realistic, moody, fine, ok, okay, "
    "beautiful, lovely, nice, good, great, perfect, wonderful, gorgeous, charming, cool, "
    "atmospheric, romantic, excellent, amazing, fantastic, superb, splendid, happy, satisfied, "
    "flawless, awesome, brilliant, pleasant, acceptable, magical, tolerable, perfectly, alright, "
    "all right, pretty as it is, as is, like it is, like this, harmless",
    "not": "hate to, hate losing, sorry to, sad to, afraid to, a shame to, a pity to, not, never, "
    "hardly, barely, scarcely, rarely, rather than, instead of, nowhere, far from, neither of, "
    "nowhere near",
    "no": "no, without, neither, none of, zero",
    "all": "all, everything, anything, the rest, rest, everything else, anything else, a thing, "
    "all else, all the rest, whole photo, the others",
    "nothing": "no complaints, no complaint, nothing, nothing else, none, no changes, no change, "
    "no edits, no editing",
    "except": "except, except for, excepting, apart from, aside from, other than, besides, save "
    "for, with the exception of, excluding",
    "doubt": "doubtless",  # stands for the "not" of "isn't it sharp?"
    "only": "only, just, solely, merely, exclusively, simply",
    "contrast": "but, though, although, while, whereas, however, whilst, even though, yet, still, "
    "because, because of, since, due to, so that, when, unless, otherwise, then, thanks to, but "
    "also, and then, as long as, even if, with all this, until, after that, nevertheless",
    "soft": "and, plus, as well as, and also, along with, together with, also, in addition to, "
    "and even, on top of",
    "photo": "photo, photos, picture, pictures, image, images, shot, shots, pic, pics, "
    "photograph, photographs, snapshot, snap, file, capture, scan, selfie",
    "taken": "taken, captured, snapped, made",
    # asks for something that is not ours
    "edit": "crop, turn, give, replace, put, rotate, resize, swap, convert, paint, color, colour, "
    "colorize, colourize, colorise, let, show, try, apply, use, set, flip, blur the, blur my, "
    "blur out, blur his, blur her, blur everything, move, straighten, write, find, generate, "
    "create, draw, photoshop, zoom, mirror, invert, transform, tell, whiten, slim, tweak, it pop, "
    "pop, magic, look like, surprise, surprise me, wow, auto, automatic, whatever, go ahead, "
    "best, shrink, smaller, bring, decide, switch, insert, combine, merge, extend, fill, "
    "saturate, cool down, warm up, warmer, cooler, nicer, prettier, contrast, colors, colours, "
    "test, unknown",
    "polite": "please, pls, plz, can you, could you, would you, will you, may you, can we, could "
    "we, may i, help me, you, your, me, hello, hi, hey, thanks, thank you, us, kindly",
    "pronoun": "it, them, those, that, this, these, both, either, they",
    "subject": "i, we, there, there is, he, she, somebody, someone",
    "copula": "is, are, was, were, be, been, am, looks, look, looked, seems, seem, appears, "
    "became, got, gets, turned, came, has, have, had, being, seemed, feels, remains so",
    "filler": "needed, necessary, required, enough, already, a, an, the, my, our, his, her, its, "
    "their, some, any, of, in, on, at, to, from, by, for, with, as, well, very, really, so, too, "
    "bit, a bit, a little, little bit, rather, quite, pretty, slightly, somewhat, extremely, "
    "totally, completely, a lot of, lots of, lots, lot, full of, full, heavy, heavily, strong, "
    "light rain, everywhere, all over, over, here, now, today, yesterday, again, much, many, way, "
    "far, horribly, terribly, awfully, or, if, will, would, can, could, may, might, must, shall, "
    "nor, do, does, did, sorry, first, second, finally, maybe, perhaps, somehow, possible, kind, "
    "thing, things, stuff, part, parts, visible, incredibly, super, ever, even, both of, whole, "
    "entire, completely, mess, almost, nearly, highly, digital, old phone, too much of, such, "
    "what, why, how, which, who, ugh, damn, omg, sadly, unfortunately, clearly, obviously, "
    "everywhere in, throughout, plenty of, loads of, tons of, whatever you do, no matter what, "
    "taste, that is, remain a, left in, no thanks, the result, up, down, same, amount, level, "
    "amounts, one, most",
}
# These say what they say also after what they are about: "the rain removed".
TRAILING = {"go", "stay", "praise", "bad"}

# Words that a misspelt word may stand for, besides the single words of the faults ...
OFTEN_MISSPELT = (
    "remove, removed, removing, reduce, reducing, eliminate, delete, keep, keeping, leave, "
    "leaving, preserve, retain, without, except, everything, nothing, focus, artifact, artifacts, "
    "artefact, artefacts, compression, resolution, picture, photo, image, please, lighting, "
    "brightness, exposure, sharpness, bright"
)
# ... but for these, which lie too near to words that have nothing to do with photos.
SELDOM_MEANT = (
    "static, dots, drops, streaks, poured, pouring, rained, raining, veil, milky, smoke, smoky, "
    "murk, murky, shake, shakes, shaking, shaken, shook, trembled, trembling, slipped, wobbled, "
    "wobbly, jerked, jolted, moved, motion, smear, smears, smeared, smeary, fuzzy, unlit, gloom, "
    "dusky, blocks, squares, blocking, messenger, lossy, stretched, enlarged, enlarge, enlarges, "
    "enlarging, jagged, gritty, grained, speck, specks, cleaner, veils, murks, smokes, hazes, "
    "mists, fogs, smogs, rains, blurs, dimness, lens, lenses, grains, steadier, decompress, "
    "decompressed, decompressing, decompresses, relighted, relighting, relights, refocused, "
    "jpegs, upres, uprez, upresed, upreses, upresing, statics, motions, unraining, unrained, "
    "unrains, glooms, blockings, crispen, crispened, crispening, demisted, demisting, demists, "
    "debluring, deblured, defoging, defoged, unfoging, unfoged, unfogged, unfogging, dejpeged, "
    "dejpeging, darkish, relight, jaggies, drizzles, downpours, ghosting, ghostings, thumbnail, "
    "compressed, rainwaters, lowers, droplets"
)

# Words of everyday English that lie one typing error away from a word above (two from eight letters
# on); they are never corrected.
ENGLISH = (
    "absolution airdrops albright alighted aright arin artifice backless barker baroness beeping "
    "bight bitterly blackest bleating bleeping blight blighted bluer bluffing bluray blurb blurt "
    "blurted blushing boggy boise brainstorm brightest brightly brighton brights bullring "
    "burnings burry cleave cleaving clothing cockiness compassion compressing compressive "
    "compressor compressors craziness creeping crispr dampness darke darken darko dazzling "
    "deadlock deadlocked debating debugging decaying declined declining decompression deduce "
    "deducting defacing defaming defining defoe deformed degraded degrades degrading delaying "
    "delegate delighting demise demurred denise denoting dentists deplete depleted depletes "
    "deposing derail derailed derailing derails deranged deriving desist desolation despised "
    "despises despising destabilise destabilize destabilized destabilizing destined detailed "
    "detailing detained detainee detaining detains devising devolution dimer dimmed dizziness "
    "dizzying doggy drained draining drains dribbling drilling drizzled eighteen eliminator "
    "engrained enlighten enlightened enlightening evolution excepted excerpt excerpts exposures "
    "ficus fighter fighters flurries flurry freckled freckles freighter fright frighten "
    "frightened frightening frightens froggy frothing glandular gleaming gleaning glittery grail "
    "grainger grannies granny granules gratin grizzled grizzly groin hailstorm happened "
    "happening happiness hardened hardening hardiness harker harkness harper hazel hazen heave "
    "heaviness heaving heckling heighten heightened heightening heightens hocus holiness "
    "illuminati illuminations illuminator imaged imager imago impression impressions inducing "
    "ingrained jitter jitters keeling kneeling laminate laughter lazier laziness leaching "
    "leading leake leaking leaning leanings leaping learning leasing leaven leaver leighton "
    "lighters lightest lightness lightning lightnings lightyear limiting listened listening "
    "locus lowes lowrey marker messiness midst minty missy mista mister mistress mistry mitty "
    "moise moises moist mouthing mudge musty nastiness neave nighter nighters nightwing noice "
    "noire noose norse noses notching nothings noticing noting notting oppression parker pease "
    "peeping pertained pertaining pertains phono photon pickling pictured pleading pleas pleased "
    "pleaser pleases pleasing pleasure pocus poise presence preserver producing proto puncture "
    "rabin ragin raina raine rainer rainey rainmaker ramin rani rebuking reducer refuting regain "
    "reliving remaking remixing remote remover reserve reserved reserves resorption restrain "
    "resuming retail retainer retaking retrain revoking revolution revolutions revolved "
    "revolving rezoning righting rightness rightwing rimmer sampling seduce seducing seeping "
    "shackled shackles shady shaka shaker shaper sharpe sharpener sharpest sharples sharpton "
    "shortened shortening shortens shortness sighting sightings simmer sizzling sleeping "
    "slighted sludge slurping slurred slurring slurry smartness smidge smuggled smugness soggy "
    "solution soothing sparkled sparkles sparkling speaking spectres spelling sperling sprained "
    "spurrier spurring stabiliser stability stabilizer stabilizers steeping sterilised sterilize "
    "sterilized sterilizing strained straining suckling sweeping tighten tightened tightening "
    "tightens tighter tightness tincture training unblocked uncompressed unsealed uprising "
    "upstaged weave weaving weeping weighting whiteout worthing wright zimmer "
)
NEUTRAL = {None, "make", "want", "mind"}  # what follows a thing decides, were it after these
DESCRIBED = {"noun", "complaint", "aspect", "virtue"}
WISHED = {"remove", "fix", "keep"}
OPERATORS = WISHED | TRAILING | {"more", "mind", "want", "make"}
# None of these stands in a mere description.
ASKED = WISHED | {"more", "mind", "want", "make", "edit", "polite", "pronoun", "subject"}
# What begins with these words, a description begins with, whatever its verbs are.
COUNTED = {"a", "an", "two", "three", "four", "five", "several", "many", "portrait"}
DOUBLED = re.compile(r"[^aeiou][aeiou][bglmnprt]$")

# Spelling before anything is read: contractions, with and without their apostrophe.
CONTRACTIONS = (
    (r"\b(?:can ?'?t|cannot)\b", "can not"),
    (r"\bwon'?t\b", "will not"),
    (r"\bshan'?t\b", "shall not"),
    (r"\bain'?t\b", "is not"),
    (r"\b(do|does|did|is|are|was|were|has|have|had|would|could|should|must|need)n'?t\b", r"\1 not"),
    (r"\b(i|you|we|they|he|she|it)'d\b", r"\1 would"),
    (r"\b(i|you|we|they)'(?:ve|re|m)\b", r"\1"),
    (r"\b(\w+)'ll\b", r"\1 will"),
    (r"\b(it|that|there|this|what|he|she|here|who|where|everything|nothing|all)'s\b", r"\1 is"),
    (r"\blet'?s\b", "let us"),
    (r"\b(thats|theres|whats)\b", lambda match: match[0][:-1] + " is"),
    (r"\b(de|un|under|over|re)-(?=[a-z])", r"\1"),
    (r"'s\b|'", ""),
    (r"(?<=[a-z0-9])-(?=[a-z0-9])", " "),
    (r"--+| - ", " ; "),
)
# A "not" that negates nothing: questions that expect a yes, and set phrases.
IDLE_NEGATIONS = (
    (r"\bnot (?:really |particularly |even |much )?like\b", "dislike"),
    (r"\bdo not (?:you|u) dare\b(?: to)?", "never"),
    (
        r"(^|[.;!?,:] *|\b(?:why|but|and|so) )(is|are|was|were|has) not "
        r"(?=(?:it|this|that|there|these|those|the|my|he|she|they)\b)",
        r"\1\2 doubtless ",
    ),
    (
        r"\b(does|did|can|could|would|will|should|have|has) not "
        r"(?=(?:you|it|they|we|i|he|she|there)\b)",
        r"\1 ",
    ),
    (
        r"\bdo not (you|they|we|i)\b(?= (?:think|see|find|agree|notice|feel|want)\b|[^.;!?]*\?)",
        r"do \1",
    ),
    (r"\bwhy do not (you|they|we|i)\b", r"do \1"),
    (r"\b(?:do|does|did) not (?:forget|hesitate|fail)(?: to)?\b", " "),
    (r"\bdo not know (?:how|why|what|if|whether)(?: to)?\b", " "),
    (
        r"\b(i|we) (can|could) not (?=(?:seem to |manage to )?(?:get|fix|remove|clean|correct))",
        r"\1 ",
    ),
    (
        r"\b(?:not only|why not|no matter \w+|not sure|if not|no idea|"
        r"no offence|no doubt|no way of|not that)\b",
        " ",
    ),
    (r"\bno need (?:to|for|of)\b", "not"),
    (r"(^|[.;!?] *)no *(?=[,.;!?])", r"\1"),
)
PAST = (
    "removed|denoised|derained|dehazed|deblurred|sharpened|brightened|lightened|fixed|corrected|"
    "cleaned|reduced|took (?:[a-z ]{1,20} )?(?:out|away)|got rid|cleared|lifted|gone|done|"
    "dealt|sorted|repaired|defogged"
)
DONE = re.compile(
    rf"^(?:so |now |well |yesterday )?(?:i|we|he|she|they|someone|somebody)(?: have| had| has)?"
    rf"(?: already| just| also| only)* (?:{PAST})\b"
    rf"|\balready\b.*\b(?:{PAST})\b|\b(?:{PAST})\b.*\balready\b|\bbeen (?:{PAST})\b"
)


@dataclass(frozen=True)
class Instruction:
    """What a sentence asks for.

    Attributes:
        remove: degradations to remove, in the order of the restorer's labels; `None` where they are
            to be found out, `()` where nothing is to be removed.
        keep: degradations that must stay.
        prompt: the sentence, where it describes the photo and wishes nothing.
        understood: how it was understood, in one line.
        notes: what the reader did with the sentence that may surprise.
    """

    remove: tuple[str, ...] | None
    keep: tuple[str, ...]
    prompt: str | None
    understood: str
    notes: tuple[str, ...] = ()


class Entry(NamedTuple):
    """What a phrase of the lexicon means."""

    kind: str
    label: str | None = None
    is_scenic: bool = False


class Mark(NamedTuple):
    """A phrase found in a sentence; unknown words have the kind "content"."""

    words: str
    kind: str
    label: str | None = None
    is_scenic: bool = False


@dataclass
class Mention:
    """A degradation that a sentence names, and what shall become of it.

    Attributes:
        wish: remove, keep, absent (said not to be there) or nothing.
        plain: whether no word but its own decided that.
        hint: whether it counts only where nothing else is named.
        is_aspect: whether it is what may be bad or good, such as the focus, and no fault.
    """

    label: str
    wish: str | None
    plain: bool
    hint: bool = False
    is_aspect: bool = False


@dataclass
class Segment:
    """A clause, or a member of a list.

    Attributes:
        joint: what stands before it: hard (. ; ! ?), contrast (but) or soft (comma, and).
        operator: kind of its last word of wishing; "settled" where its wish was given to things of
            the segment before.
        negated: whether a "not" stood before that word.
        mood: remove or keep, what its last word of wishing said; `None` without one.
        refusal: "not" or "no" that its last word left open.
        rest: what shall become of everything that it does not name.
        is_praise: whether it calls something good.
    """

    joint: str
    marks: list[Mark] = field(default_factory=list)
    mentions: list[Mention] = field(default_factory=list)
    operator: str | None = None
    negated: bool = False
    refusal: str | None = None
    mood: str | None = None
    rest: str | None = None
    is_praise: bool = False

    @property
    def words(self) -> str:
        return " ".join(mark.words for mark in self.marks)

    def has(self, *kinds: str) -> bool:
        return any(mark.kind in kinds for mark in self.marks)


def split_phrases(phrases: str) -> list[str]:
    """The phrases of a text that joins them by commas."""
    return [phrase.strip() for phrase in phrases.split(",") if phrase.strip()]


def forms_of(verb: str) -> list[str]:
    """A verb, of which the first word is bent: removes, removed, removing."""
    first, *others = verb.split()
    stems = [first]
    if DOUBLED.search(first):
        stems.append(first + first[-1])
    forms = [first]
    for stem in stems:
        base = stem.removesuffix("e")
        past = stem.removesuffix("y") + "ied" if stem[-1] == "y" and stem[-2] not in "aeiou" else ""
        forms += [f"{base}ing", past or f"{base}ed"]
    if first[-1] == "y" and first[-2] not in "aeiou":
        forms.append(f"{first[:-1]}ies")
    else:
        forms.append(first + ("es" if first.endswith(("s", "sh", "ch", "x", "o")) else "s"))
    return [" ".join((form, *others)) for form in forms]


@cache
def lexicon() -> dict[tuple[str, ...], Entry]:
    """Every phrase as a tuple of words, and what it means; what stands first in the tables wins."""
    entries: dict[tuple[str, ...], Entry] = {}

    def add(phrase: str, *meaning: str | bool) -> None:
        entries.setdefault(tuple(phrase.split()), Entry(*meaning))

    for label, groups in FAULTS.items():
        for group, phrases in groups.items():
            kind = group.removeprefix("scene ").removesuffix("s")
            for phrase in split_phrases(phrases):
                forms = forms_of(phrase) if kind == "verb" else [phrase]
                if kind == "noun" and not phrase.endswith("s"):
                    forms.append(f"{phrase}s")
                for form in forms:
                    add(form, kind, label, group.startswith("scene"))
    for kind, phrases in GRAMMAR.items():
        for phrase in split_phrases(phrases):
            for form in forms_of(phrase[1:]) if phrase[0] == "*" else [phrase]:
                add(form, kind)
    return entries


@cache
def longest_phrase() -> int:
    """Number of words of the longest phrase."""
    return max(map(len, lexicon()))


@cache
def known_words() -> frozenset[str]:
    """Words that are never corrected."""
    return frozenset(word for phrase in lexicon() for word in phrase) | set(ENGLISH.split())


def shortened(word: str, deletions: int) -> set[str]:
    """A word without up to so many of its letters."""
    results = {word}
    for _ in range(deletions):
        results |= {
            text[:position] + text[position + 1 :]
            for text in tuple(results)
            for position in range(len(text))
        }
    return results


@cache
def correctable_words() -> frozenset[str]:
    """What a misspelt word may stand for."""
    groups = ("noun", "complaint", "verb", "comparative")
    words = {
        phrase[0]
        for phrase, entry in lexicon().items()
        if len(phrase) == 1 and entry.kind in groups and len(phrase[0]) >= 3
    }
    words |= set(split_phrases(OFTEN_MISSPELT))
    return frozenset(words - set(split_phrases(SELDOM_MEANT)))


@cache
def corrections() -> dict[str, list[str]]:
    """Words of the lexicon by what is left of them after typing errors; words within a distance
    share a remainder (SymSpell)."""
    remainders: dict[str, list[str]] = {}
    for word in sorted(correctable_words()):
        for remainder in shortened(word, allowed_errors(word) or 1):
            remainders.setdefault(remainder, []).append(word)
    return remainders


def allowed_errors(word: str) -> int:
    """How many typing errors a word of this length may hold."""
    return 0 if len(word) < 5 else 1 if len(word) < 8 else 2


def distance(first: str, second: str) -> int:
    """Damerau's distance: letters missing, added, exchanged, or swapped with their neighbour."""
    before: list[int] = []
    previous = list(range(len(second) + 1))
    for i, letter in enumerate(first, start=1):
        current = [i]
        for j, other in enumerate(second, start=1):
            cost = min(previous[j] + 1, current[j - 1] + 1, previous[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == second[j - 2] and first[i - 2] == other:
                cost = min(cost, before[j - 2] + 1)
            current.append(cost)
        before, previous = previous, current
    return previous[-1]


def is_swap(word: str, other: str) -> bool:
    """Whether two words of four letters differ by neighbours swapped or by a letter doubled."""
    if len(word) == len(other):
        return sorted(word) == sorted(other) and distance(word, other) == 1
    short, long = sorted((word, other), key=len)
    doubled = {short[: i + 1] + short[i:] for i in range(len(short))}
    return long in doubled


@cache
def readings() -> dict[str, set[Entry]]:
    """What a single word means, alone or as a part of phrases."""
    meanings: dict[str, set[Entry]] = {}
    for phrase, entry in lexicon().items():
        for word in phrase:
            meanings.setdefault(word, set()).add(entry)
    for phrase, entry in lexicon().items():
        if len(phrase) == 1:
            meanings[phrase[0]] = {entry}
    return meanings


def correct(word: str) -> str:
    """The word of the lexicon that a misspelt one stands for; itself where that is unclear."""
    if len(word) < 4 or len(word) > 24 or not word.isalpha() or word in known_words():
        return word
    for replacement in (r"\1\1", r"\1"):
        calm = re.sub(r"(.)\1{2,}", replacement, word)
        if calm in known_words():
            return calm
    errors = allowed_errors(word)
    candidates = {
        candidate
        for remainder in shortened(word, errors or 1)
        for candidate in corrections().get(remainder, ())
    }
    distances = {
        candidate: distance(word, candidate)
        for candidate in candidates
        if errors or is_swap(word, candidate)
    }
    least = min(distances.values(), default=99)
    if least > max(errors, 1):
        return word
    nearest = [candidate for candidate, value in sorted(distances.items()) if value == least]
    meant = {entry.label or entry.kind for name in nearest for entry in readings()[name]}
    return nearest[0] if len(nearest) == 1 or len(meant) == 1 else word


def fold(text: str) -> str:
    """Lower case without accents and typographic signs, contractions written out."""
    text = re.sub("[\u2018-\u201b\u00b4\u0060\u02bc\u2032\uff07]", "'", text)
    text = re.sub("[\u2010-\u2015\u2212]", "-", text)
    text = unicodedata.normalize("NFKD", text)[: 2 * len(text)].casefold()
    text = "".join(letter for letter in text if not unicodedata.combining(letter))
    for pattern, replacement in (*CONTRACTIONS, *IDLE_NEGATIONS):
        text = re.sub(pattern, replacement, re.sub(r"[ \t]+", " ", text))
    return text


def find_marks(text: str) -> list[Mark]:
    """The phrases of a folded text, longest first; signs that part clauses are hard or soft."""
    words = re.findall(r"[^\W_]+|[.;!?\n()\[\]]|[,&+/]", text)
    words = [correct(word) for word in words]
    marks, position = [], 0
    while position < len(words):
        for length in range(min(longest_phrase(), len(words) - position), 0, -1):
            phrase = tuple(words[position : position + length])
            entry = lexicon().get(phrase)
            if entry:
                break
        if entry is None:
            word = words[position]
            sign = "soft" if word in ",&+/" else "hard"
            if word.isalnum():
                sign = "content" if re.search("[a-z]", word) else "other"
            entry = Entry(sign)
        marks.append(Mark(" ".join(phrase), *entry))
        position += length
    return marks


def find_segments(marks: list[Mark]) -> list[Segment]:
    """Clauses and members of lists, each with what stands before it."""
    segments = [Segment("hard")]
    for place, mark in enumerate(marks):
        current = segments[-1]
        last = current.marks[-1].kind if current.marks else None
        following = marks[place + 1].kind if place + 1 < len(marks) else None
        is_rest = last in ("all", "nothing") and following not in {*WISHED, "polite"}
        if mark.words == "but" and is_rest:
            current.marks.append(Mark("but", "except"))
        elif mark.kind in ("hard", "contrast", "soft"):
            if current.marks:
                segments.append(Segment(mark.kind))
            elif mark.kind != "soft":
                current.joint = mark.kind
        else:
            if mark.kind == "only" and last and last not in ("keep", "stay"):
                segments.append(Segment("contrast"))
            segments[-1].marks.append(mark)
    said = [segment for segment in segments if any(mark.kind != "only" for mark in segment.marks)]
    return said or [segment for segment in segments if segment.marks]


def opposite(wish: str | None) -> str | None:
    """Keep for remove, and remove for keep; nothing else has an opposite."""
    return {"remove": "keep", "keep": "remove"}.get(wish, wish)


# What becomes of a thing after each kind of wish, before a "not" turns it round.
WISHES = {
    "noun": {"more": "keep", "keep": "keep", "want": "keep"},
    "complaint": {"keep": "keep", "want": "keep", "make": "keep"},
    "aspect": {None: None, "remove": None, "keep": "keep", "mind": None},
    "virtue": {None: None, "keep": None, "mind": None, "remove": "remove"},
}


def judge(kind: str, segment: Segment, before: str | None, at_end: bool, word: str) -> str | None:
    """What becomes of a thing that is named now.

    Args:
        before: what became of the things of the segment before.
        at_end: whether nothing that it could describe follows.
        word: how it is named.
    """
    operator, negated, refusal = segment.operator, segment.negated, segment.refusal
    if refusal == "doubt":
        refusal = "no" if kind == "virtue" else None
    if kind == "hint":
        return "remove"
    if kind == "verb":
        is_thing = word.split()[0].endswith("ing") or word.endswith(("reduction", "removal"))
        if operator in ("remove", "keep") and is_thing:
            return "remove" if negated else "keep"
        return "keep" if (negated and operator != "mind") or refusal else "remove"
    if kind == "comparative":
        return "keep" if negated or refusal else "remove"
    if kind == "virtue" and (refusal or operator == "remove"):
        return None if segment.has("make") and not refusal else "remove"
    if refusal == "neither" and kind == "complaint":
        return "absent"
    if refusal == "neither" and before == "remove" and segment.joint == "soft":
        return "keep"
    if refusal in ("no", "neither"):
        return "remove"
    if refusal == "not":
        if kind == "complaint" or segment.has("copula"):
            return "remove" if operator in ("want", "make") else "absent"
        return opposite(segment.mood or before or "remove")
    if kind == "complaint" and operator in ("make", "want") and not at_end:
        return "remove"
    if kind == "complaint" and operator == "make" and negated:
        return None
    wish = WISHES.get(kind, {}).get(operator, "remove")
    return opposite(wish) if negated else wish


def read_operator(segment: Segment, mark: Mark, before: str | None) -> None:
    """Take in a word of wishing: it speaks of what stands before it, or of what follows.

    Args:
        before: the kind of the phrase that stands directly before it.
    """
    kind = {"go": "remove", "stay": "keep", "praise": "keep"}.get(mark.kind, mark.kind)
    negated = segment.refusal not in (None, "doubt") or (
        segment.operator in NEUTRAL and segment.negated
    )
    if segment.rest and segment.mentions and (mark.kind in TRAILING or kind in WISHED):
        segment.rest = "keep" if (kind == "keep") != negated else "remove"
        for mention in segment.mentions:
            mention.wish, mention.plain = opposite(segment.rest), False
        return
    if mark.kind == "go" and before in ("remove", "fix"):
        return  # "smooth away" is one verb
    if mark.kind in TRAILING:
        freed = {"want", "mind", "make", None, *({"keep"} if mark.kind == "go" else ())}
        open_mentions = [
            mention
            for mention in segment.mentions
            if mention.plain or (segment.operator in freed and mark.kind in ("go", "stay"))
        ]
        is_done = segment.operator == "keep" and segment.negated
        if open_mentions and not is_done:
            wish = "keep" if kind == "keep" else "remove"
            negated = negated and segment.operator != "mind"
            for mention in open_mentions:
                mention.wish, mention.plain = opposite(wish) if negated else wish, False
                if mention.is_aspect and mention.wish == "keep":
                    mention.wish = None
            segment.mood = open_mentions[-1].wish
            segment.operator, segment.negated, segment.refusal = None, False, None
            return
        if mark.kind == "praise":
            segment.is_praise = segment.is_praise or not negated
            segment.refusal = None
            return
    segment.operator, segment.negated, segment.refusal = kind, negated, None
    if kind in ("remove", "fix", "keep", "bad", "mind"):
        wish = "keep" if kind == "keep" else "remove"
        segment.mood = opposite(wish) if negated else wish


def read_except(segment: Segment) -> None:
    """Take in "all but": the rest and what follows have opposite fates."""
    is_kept = segment.mood == "keep" or segment.is_praise
    if segment.has("nothing") and not segment.mood:
        is_kept = True
    segment.rest = "keep" if is_kept else "remove"
    segment.operator, segment.negated, segment.refusal = "remove", False, None
    if not is_kept:
        segment.operator = "keep"
    segment.mood = opposite(segment.rest)


def inherit(segment: Segment, before: Segment) -> None:
    """Let a bare member of a list share what was said of the member before it."""
    first = next((mark.kind for mark in segment.marks if mark.kind != "filler"), None)
    is_verb = segment.has("verb") and not (before.refusal or before.negated)
    stands_alone = (
        segment.has(*OPERATORS, "not", "no", "except", "only", "copula", "subject", "pronoun")
        or is_verb
    )
    if segment.joint != "soft" or stands_alone or first not in (*DESCRIBED, "verb"):
        return
    if segment.has("verb") and before.marks[-1].kind != "verb":
        return
    segment.operator, segment.negated = before.operator, before.negated
    segment.refusal, segment.mood = before.refusal, before.mood


def read_segment(segment: Segment, before: Segment | None) -> None:
    """Find the mentions of a segment and what is wished for them."""
    if before:
        inherit(segment, before)
    is_done = DONE.search(segment.words) is not None
    fate = before.mood or ("keep" if before.is_praise else None) if before else None
    for position, mark in enumerate(segment.marks):
        following = segment.marks[position + 1].kind if position + 1 < len(segment.marks) else None
        if mark.words in ("on", "yes", "be") and following is None and segment.mentions:
            mark = Mark(mark.words, "stay")  # rain off, fog on
        if mark.words == "up" and position and segment.marks[position - 1].kind == "aspect":
            segment.mentions[-1].wish = segment.mentions[-1].wish or "remove"  # brightness up
        if mark.kind in ("not", "no", "doubt"):
            segment.refusal = "neither" if mark.words == "neither" else mark.kind
        elif mark.kind == "nothing":
            segment.refusal = "not"
            segment.mood, segment.negated = opposite(segment.mood), not segment.negated
        elif mark.kind == "except":
            read_except(segment)
        elif mark.kind in OPERATORS:
            read_operator(segment, mark, segment.marks[position - 1].kind if position else None)
        elif mark.words == "to" and segment.operator == "want":
            segment.operator = None
        elif mark.words == "water" and segment.operator == "remove" and following is None:
            segment.mentions.append(Mention("rain", segment.mood, False))  # in a photo, of rain
        elif mark.label:
            at_end = following not in ("photo", "content")
            wish = judge(mark.kind, segment, fate, at_end, mark.words)
            is_aspect = mark.kind in ("aspect", "virtue")
            plain = segment.operator in NEUTRAL and (wish is None) == is_aspect
            plain = plain and (segment.operator is not None or wish in (None, "remove"))
            if not (is_done and mark.kind != "complaint"):
                is_hint = mark.kind == "hint"
                segment.mentions.append(Mention(mark.label, wish, plain, is_hint, is_aspect))
            if mark.kind == "verb":
                segment.mood = wish
    if before and segment.words.startswith("with ") and before.mood == "remove":
        for mention in segment.mentions:
            mention.wish = "keep" if mention.plain else mention.wish
    settle_last(segment, fate)
    if segment.mentions and not segment.mood:
        segment.mood = segment.mentions[-1].wish


def settle_last(segment: Segment, before: str | None) -> None:
    """Let a last word of wishing that found nothing after it speak of what stands before it."""
    kinds = [mark.kind for mark in segment.marks]
    named = [place for place, mark in enumerate(segment.marks) if mark.label]
    wished = [place for place, kind in enumerate(kinds) if kind in ("remove", "fix", "keep")]
    if named and segment.marks[-1].words == "not":
        for mention in segment.mentions:  # the noise must go, the rain must not
            mention.wish, mention.plain = opposite(before or "remove"), False
        segment.mood = opposite(before or "remove")
        return
    if not named or not wished or wished[-1] < named[-1] or segment.operator not in kinds:
        return
    for mention in segment.mentions:
        if mention.plain:
            mention.wish, mention.plain = segment.mood, False


def refer_back(segments: list[Segment]) -> None:
    """Give pronouns and lists their things: "rain, fog may stay", "it is grainy; keep that"."""
    for place, segment in enumerate(segments[1:], start=1):
        before = segments[place - 1]
        if segment.joint == "soft" and segment.mentions and segment.mood == "keep":
            trails = segment.marks[-1].label is None and not segment.mentions[-1].plain
            first = next((mark for mark in segment.marks if mark.kind != "filler"), None)
            if trails and first and first.label:
                keep_bare(segments, place)
        shares = segment.joint == "soft" and not before.mentions and not before.has("content")
        if shares and before.mood and segment.mentions and before.marks[-1].kind in WISHED:
            before.mentions = [
                Mention(mention.label, before.mood, False) for mention in segment.mentions
            ]
        if segment.joint == "soft" and before.rest == "remove" and asks_nothing(segment):
            before.rest = "keep"
            for mention in before.mentions:
                mention.wish = "remove"
        is_wish = segment.mood is not None or segment.is_praise
        if segment.mentions or not is_wish or not is_pronoun_wish(segment):
            continue
        if before.mentions:
            is_kept = segment.mood == "keep" and not segment.has("praise")
            for mention in before.mentions:
                if mention.plain and is_kept:
                    mention.wish, mention.plain = "keep", False
            if any(mention.wish for mention in before.mentions):
                segment.mood, segment.operator = None, "settled"


def keep_bare(segments: list[Segment], place: int) -> None:
    """Keep what the bare members of a list before this one name."""
    joint = segments[place].joint
    for segment in reversed(segments[:place]):
        if joint != "soft" or not all(
            mark.label or mark.kind in ("filler", "content") for mark in segment.marks
        ):
            return
        for mention in segment.mentions:
            mention.wish = "keep"
        joint = segment.joint


def is_pronoun_wish(segment: Segment) -> bool:
    """Whether a segment wishes something for "it" alone, or praises it."""
    if segment.marks[0].kind == "pronoun" and segment.has("stay", "praise"):
        return not segment.has("content", "photo", "fix", "remove")
    operators = ("remove", "fix", "keep", "want", "mind", "bad")
    places = [i for i, mark in enumerate(segment.marks) if mark.kind in operators]
    if not places:
        return False
    rest = segment.marks[places[-1] + 1 :]
    allowed = ("filler", "pronoun", "stay", "polite", "praise", "go", "only")
    return any(mark.kind == "pronoun" for mark in rest[:1]) and all(
        mark.kind in allowed for mark in rest
    )


def asks_nothing(segment: Segment) -> bool:
    """Whether a segment without a mention says that the photo is good as it is."""
    is_named = any(mention.wish for mention in segment.mentions)
    if is_named or segment.rest or segment.operator == "settled":
        return False
    if segment.has("content", "edit") and not segment.has("all", "nothing"):
        return False
    if segment.has("nothing") and segment.mood != "remove":
        return True
    if segment.has("all") and segment.refusal == "not" and not segment.operator:
        return True
    if segment.is_praise:
        return not segment.has("make", "want", "fix")
    whole = segment.has("all", "pronoun", "photo", "stay") or len(segment.marks) == 1
    return segment.mood == "keep" and whole


def is_scene(segments: list[Segment]) -> bool:
    """Whether a sentence describes a photo and neither wishes nor complains."""
    marks = [mark for segment in segments for mark in segment.marks]
    names = [mark for mark in marks if mark.label and mark.kind not in ("aspect", "virtue")]
    if not any(mark.kind == "content" for mark in marks):
        return False
    mentions = [mention for segment in segments for mention in segment.mentions]
    if any(mention.is_aspect and mention.wish for mention in mentions):
        return False
    if any(not mark.is_scenic for mark in names):
        return False
    kinds = [mark.kind for mark in marks]
    if "photo" in kinds and names:
        place = kinds.index("photo")
        is_of = [mark.words for mark in marks[place + 1 : place + 2]] == ["of"]
        if not is_of or any(mark in names for mark in marks[:place]):
            return False
    starts_counted = marks[0].words in COUNTED
    if starts_counted and not any(
        mark.kind in ("want", "edit", "polite", "subject") for mark in marks
    ):
        return True
    if any(mark.kind in ASKED for mark in marks):
        return False
    if not names:
        return True
    return not {"copula", "bad", "taken", "not", "no", "only", "go", "stay"} & set(kinds)


def list_labels(segments: list[Segment], wish: str) -> list[str]:
    """The degradations with a wish, in the order of the restorer's labels."""
    mentions = [mention for segment in segments for mention in segment.mentions]
    named = {mention.label for mention in mentions if mention.wish == wish and not mention.hint}
    hinted = {mention.label for mention in mentions if mention.wish == wish}
    return [label for label in FAULTS if label in (named or hinted)]


def tell(remove: tuple[str, ...] | None, keep: tuple[str, ...], is_vague: bool) -> str:
    """One line that says how a sentence was understood."""
    if remove is None:
        if is_vague and not keep:
            return "nothing particular was understood; finding out by itself"
        wish = "finding out by itself what to remove"
    elif remove:
        wish = "removing " + ", ".join(NAMES.get(label, label) for label in remove)
    else:
        wish = "removing nothing"
    kept = "; keeping " + ", ".join(NAMES.get(label, label) for label in keep) if keep else ""
    return wish + kept


class InstructionReader(FeatureExtractionMixin):
    """Reads what a sentence wishes: `reader("take out the rain but leave the fog")`.

    A component of a pipeline without weights; its configuration is the length of a text.

    Args:
        max_characters: what a text holds beyond that is not read.
        kwargs: what the loader of transformers adds to a configuration.
    """

    def __init__(self, max_characters: int = 2000, **kwargs):
        super().__init__(**kwargs)
        self.max_characters = max_characters

    def __call__(self, text: str) -> Instruction:
        """Read one instruction.

        Raises:
            ValueError: if it is no text, or an empty one.
        """
        if not isinstance(text, str):
            raise ValueError(f"`instruction` must be a text, got {type(text).__name__}.")
        if not text.strip():
            raise ValueError(
                "`instruction` is empty; say what to remove, such as 'take out the rain'."
            )
        notes = []
        text = text.strip()
        if len(text) > self.max_characters:
            text = text[: self.max_characters]
            notes.append(f"only the first {self.max_characters:,} characters were read")
        folded = fold(text)
        if re.search(r"[^\W\d_a-z]", folded):
            notes.append("only English is read")
        marks = find_marks(folded)
        segments = find_segments(marks)
        for before, segment in zip([None, *segments], segments):
            read_segment(segment, before)
        refer_back(segments)
        if is_scene(segments):
            told = "a description of the photo; finding out by itself what to remove"
            return Instruction(None, (), text, told, tuple(notes))
        return self._decide(segments, notes)

    def _decide(self, segments: list[Segment], notes: list[str]) -> Instruction:
        """One instruction out of all segments; what is to be kept is not removed."""
        removed = list_labels(segments, "remove")
        keep = tuple(list_labels(segments, "keep"))
        both = [label for label in removed if label in keep]
        if both:
            names = ", ".join(NAMES.get(label, label) for label in both)
            notes.append(f"{names}: asked to be removed and to be kept; it is kept")
        remaining = tuple(label for label in removed if label not in keep)
        rests = {segment.rest for segment in segments}
        asked = [segment for segment in segments if segment.operator in ("remove", "fix", "more")]
        is_done = any(asks_nothing(segment) for segment in segments)
        is_absent = any(list_labels([segment], "absent") for segment in segments)
        if "remove" in rests:
            remove = None
        elif removed:
            remove = remaining
        elif keep:
            remove = () if is_done else None
        elif any(segment.mood == "remove" for segment in asked):
            remove = None
        else:
            remove = () if is_done or is_absent else None
        is_vague = remove is None and not keep
        if is_vague and asked:
            notes.append("it names none of " + ", ".join(FAULTS))
        return Instruction(remove, keep, None, tell(remove, keep, is_vague), tuple(notes))
