"""The reader of wishes: what sentences mean, what is never removed, bad input, saving, speed.

The 200 sentences of `tests/fixtures/instructions.json` were written before the reader; it is not
tuned on them. The two lists here are: the examples of the design, and those of its development.
"""

import itertools
import json
import random
import shutil
import time
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline

from pipelines.pipeline_text_guided_restoration import TASKS
from textir.models import InstructionReader
from textir.models import instruction_reader as source

HELD_OUT = json.loads(
    (Path(__file__).parents[1] / "fixtures" / "instructions.json").read_text(encoding="utf-8")
)
LETTERS = {
    "N": "noise",
    "R": "rain",
    "H": "haze",
    "B": "blur",
    "D": "defocus",
    "L": "lowlight",
    "J": "jpeg",
    "U": "downup",
}
# What is removed, + what is kept: A finds out by itself, W too (the sentence describes the photo),
# 0 removes nothing.
DESIGN = """
N+H|noise out, mist stays
L+N|don't touch grain, just brighten
B+R|not the rain but the blur
A+H|all except fog
R|keep all but rain
A+H|leave nothing but fog
A+R|keep the rain
0|fine as it is
H+N|love grain, lose haze
R|it was pouring
B|not too dark, just shaky
N|isn't it grainy?
N|no noise
A+N|no denoising
B+R|unblur without removing rain
RH+N|drop rain and fog, not grain
R+H|rain out, fog stays
N|remvoe teh niose
RH|derian & dehaze
R|REMOVE RAIN!!!
J|only the blocks
L|only brighten
+H|less fog but keep mist
N+L|don't mind the dark, dots must go
H|don't keep haze
B+R|rain may stay, sharpen
B|my hand slipped
D|lens wasn't focused
L|can't see a thing
J|WhatsApp squares
A+H|could you not remove fog?
H|wouldn't mind if haze went
W|red bus at night
W|rainy street
R|a rainy photo
W|Brain Museum train
A|make it pop
A|remove the car
NB|neither noise nor blur
H|I denoised it, now the fog
R+H|take out the rain but leave the fog
+N|remove and keep the noise
W|a red bus at night
N|grainy
L|too dark
D|out of focus
J|blocky
H|foggy
N|remove the noise
"""
DEVELOPMENT = """
N|kill the noise
N|the night sky is full of speckles
N|why are there so many dots?
N|It came out really grainy
N|my old phone makes noisy pictures, can you help?
N|too noisy
N|I hate grain
N|reduce noise
N|would you please denoise it?
N|salt and pepper all over
R|rain
R|It rained on our wedding
R|it was drizzling
R|can the rain streaks be removed?
R|we stood in the pouring rain
R|I'd like to have this without the rain
R|I want the rain gone
R|I don't want rain in my picture
R|let the rain disappear
R|make the rain go away
R|raindrops everywhere
R|it was raining cats and dogs
R|the rain bothers me
R|the rain ruins it
R|wash the rain away
R|eliminate the water
R+H|take out the water but leave the fog
A+R|do not remove the water
A|remove the water bottle
H|see through the fog
H|there was a lot of smog that day
H|hazy
H|the mist has to go
H|the mountains disappear in the haze
H|please defog
H|I wish there was less fog
H|it was so foggy we could not see the bridge
H|the fog hides the bridge
B|I shook the camera
B|it is a blurry mess
B|can you make this sharper?
B|should be sharp
B|why isn't it sharp?
B|The dog moved
B|unblur it for me
B|not very sharp
B|undo the motion blur
B|could be crisper
B|my hands trembled from the cold
D|my face is out of focus
D|the lens was off
D|the camera focused on the background
D|refocus on the eyes
D|wrong focus
D|get it in focus
D|focus was missed
D|focus is on the wall
D+R|the focus was on the fence; keep the rain
D|nothing is focused
L|so dark
L|it's a bit dark
L|we had no light
L|add some light
L|increase the brightness
L|turn the lights on
L|could you switch on the light?
L|brightness up
L|turn the exposure up a bit
A+L|don't turn the brightness up
L|make it brighter
L|it should be brighter
L|the lights were off and one barely sees us
L|light it up
L|too little light
L|poor lighting
L|not bright enough
L|make it less dark please
L|Can you lighten the faces
L|it's almost black
J|there are jpeg artifacts around the letters
J|blockiness
J|Facebook compressed it to death
J|get rid of these compression blocks
J|It's a JPEG of very low quality
U|tiny picture, upscale it please
U|It looks pixelated
U|make it bigger resolution
U|it has a low res
U|increase resolution
U|super resolution please
NL|dark and grainy
NL|grainy, dark
NR|Remove the noise. Also the rain.
NRH|noise, rain and fog
RH|rain and fog must go
LR|brighten it, and get rid of the rain as well
BN|sharpen and denoise
BN|it's blurry and there's noise too
HJ|foggy and blocky
LD|the shot is underexposed and the focus is wrong
NLB|Noise, blur, darkness - all of it has to go
R+H|remove rain, keep fog
R+H|Keep the fog but remove the rain
R+H|I love the fog, but the rain has to go
R+H|lose the rain; the fog is lovely
R+H|please remove the rain and not the fog
R+H|without rain, but with fog
R+H|take the rain out and leave the fog in
R+H|the fog may stay but the rain must go
R+H|derain it without touching the fog
R+H|rain: remove; fog: keep
R+H|remove the rain rather than the fog
N+R|get rid of the noise. Don't touch the rain.
N+L|denoise but don't brighten
N+L|denoise it but keep it dark
L+N|brighten it. I like the grain
B+N|deblur but no denoising please
B+RN|sharpen it, but keep rain and noise
+N|remove the grain but keep the grain
A+N|do not denoise
A+N|please no denoising
A+H|I want the fog
A+H|keep it foggy
A+H|make it foggy
A+H|it's foggy, keep that
A+H|the fog should stay
A+H|the fog should not be removed
A+H|fog is part of the mood
A+R|the rain is not a problem
A+R|the rain doesn't bother me
A+R|I don't mind the rain
A+R|I'd like to keep the rain
A+RH|rain and fog may stay
A+RH|don't remove the rain or the fog
A+RH|leave the rain and the fog alone
A+NB|don't denoise or sharpen
A+NB|don't sharpen and denoise
A+L|I want it dark
A+L|it's supposed to be dark
A+N|add some grain
A+H|clean it, but the haze is intentional
A+B|the blur is on purpose
A+R|fix everything, just not the rain
A+R|everything but the rain should go
A+R|don't keep anything but the rain
R|don't remove anything but the rain
R|keep everything but the rain
R|change nothing except the rain
R|remove the rain, leave the rest as it is
R|remove nothing but rain
R|It's not fog, it's rain
R+H|Not fog but rain
R|the rain must not stay
R|no rain should remain
R|don't forget to remove the rain
R|can't you take out the rain?
R|why don't you remove the rain
R|do you mind removing the rain?
R|I would not keep the rain
R|it's good, but the rain disturbs me
R|fine except for the rain
NR|not only the noise but also the rain
NR|Don't keep the noise or the rain
N|it isn't dark, it's noisy
N|neither dark nor blurry, only noisy
0|it's not noisy
0|perfect
0|nothing
0|don't do anything
0|I like it as it is
0|please leave it alone
0|no changes please
0|great picture
0|I love this photo
0|remove nothing
H|I have already removed the rain, now the fog
B|I sharpened it but it is still blurry
L|noise was removed already, just brighten it
N|romove the noize
R|remvoe the rainn
H|foggyy
B|blurrry
B|bluury
B|plese sharpen
L|to drak and underexposd
L|undrexposed
J|compresion artifcats
U|pixalated
D|out of foucs
R|Pleeease remove the raaain
W|train in the snow
W|a brown horse on a green meadow
W|sunset over the sea
W|old town square with people
W|a boy is playing with a ball
W|a man walking in the rain
W|foggy forest in autumn
W|dark alley with a lamp
W|photo of a foggy harbour
W|a picture of my grandmother
W|portrait of a young woman
W|Ukraine drain grape brain plane
W|sailing boat on a misty lake
W|sharp rocks at the coast
W|night market with bright lanterns
W|a house without windows
W|the noble castle, a blurb on the wall
R|photo taken in the rain
R|rainy picture
H|a foggy photo of a harbour
L|a dark photo
N|grainy picture of a cat
BL|dark blurry photo
D|portrait, out of focus
A|fix this
A|make it beautiful
A|enhance
A|make the sky blue
A|can you remove my ex from this picture?
A|turn it into a painting
A|remove the watermark
A|keep the colours natural
A|help
A|restore my photo
A|delete the person in the background
A|clean
A|make it less bright
A|whiten my teeth
A|remove the umbrella
A|rotate it by 90 degrees
A|blur the background
A|убери дождь
A|12345
A|???
N|My pics from the concert are full of grain, any chance to rescue them?
N|the high ISO ruined it
N|tiny coloured specks in the black parts
N|Please smooth out the noise a little
N|I'd be glad if the noise were gone
N|reduce the graininess but nothing else
N|could we have less noise?
N|noisy af
R|the rain spoils our holiday photo
R|Is it possible to remove rain from a photo?
R|there are white rain streaks across her face
R|it started to rain just as I pressed the button
R|i want to see what it looks like without the rain
R|we were standing in the rain
R|stop the rain
H|the fog makes it hard to see the church
H|get this fog out of here
H|can you remove the morning mist over the lake
H|everything disappears in the fog
H|a layer of smog lies over the city, I'd rather see the skyline
H|the air was so hazy
B|motion blurred because I was running
B|my kid wouldn't hold still so it's blurred
B|The shutter was too slow
B|camera wasn't steady
B|I want it tack sharp
B|it would be nice if it were sharper
B|the photo lacks crispness
D|camera focused on the tree instead of us
D|everything's out of focus
D|I wish my sister were in focus
D|focus went wrong
D|The eyes aren't focused
L|it's a little bit too dark in here
L|taken at night without a flash
L|I'd like it a lot brighter
L|my face is in the dark
L|can you see anything? I can't
L|turn up the brightness
L|shadows are too dark
L|this came out almost black
J|saved with low jpeg quality
J|there are compression blocks around the edges
J|someone sent it over messenger and now it looks blocky
J|clean the compression mess
J|8x8 blocks are visible
U|the resolution is terrible
U|could you upscale this old photo
U|I can count the pixels
U|I only have a tiny version of it, please enlarge
NL|noisy because it was so dark
RL|it was raining and getting dark
HN|I see haze and noise in it
NBL|dark, blurred, noisy: a disaster
BJ|fix blur + blockiness
RH|Rain and fog, fog and rain! Get rid of it
ND|Please fix the focus and reduce the noise
R+H|the fog is atmospheric but the rain is not
R+H|everything foggy is fine, only take the rain away
R+H|rain off, fog on
R+H|no rain please, I want to keep the fog though
N+R|I don't care about the rain, but please denoise
N+B|remove grain but don't sharpen
N+L|get rid of the noise, but please keep the dark mood
L+N|brighten; do not denoise
H+B|dehaze it, the motion blur is intended
H+RN|take out the haze only, neither the rain nor the noise
B+N|Sharpen the picture whilst preserving the grain
J+H|remove blocks. Fog should remain.
A+R|please don't take away the rain
A+R|rain is good
A+R|I would hate to lose the rain
A+R|don't even think of removing the rain
A+R|as long as the rain stays, do what you want
A+H|the haze must not be removed
A+H|hands off the fog
A+N|I love grainy pictures
A+N|film grain is part of its charm
A+L|it's dark but I like that
A+L|keep the night mood, no brightening
A+B|leave the blur in the background
A+NJ|remove anything but noise and jpeg artifacts
N|keep all except the noise
H|there is nothing wrong with it but the haze
R|I'm not happy with the rain
R|the rain should not be there
R|I never wanted that rain in there
L|It is not noisy but dark
L|isn't that a bit dark?
N|not blurry. noisy.
B|far from sharp
+H|keep the fog, no wait, remove the fog
+R|less rain but keep the rain
N|remve the nosie plaese
R|take out teh raindorps
H|deahze
B|blurrred
L|brghten it
J|jpg artefcats
W|a cup of coffee on a table
W|street musicians in Prague
W|rainy evening in Tokyo
W|misty lake at dawn
W|a little girl with a balloon
W|two dogs running through a dark forest
W|the old harbour of Hamburg
W|steam train in the fog
W|bright yellow flowers
W|waterfall in the jungle
W|my grandmother in her kitchen
W|a boat on calm water
N|a grainy photo of two dogs
R|a rainy shot of our street
L|underexposed photo of a church
B|shaky picture of a concert
A|make it nicer
A|could you improve this picture?
A|remove the tourists please
A|get rid of the red eyes
A|colorize
A|more contrast
A|remove the wrinkles
A|straighten the horizon
0|it's already perfect
0|no need to change anything
0|don't touch it
0|I'm happy with it
0|everything is fine
0|leave everything as it is
N|i hate how noisy my camera is
N|lots of colored specks, clean it please
N|the grain in the sky has to be reduced
N|Denoising needed
N|can the noise be lowered?
N|this looks like static on an old tv
R|Raindrops are spoiling the view
R|it rained cats and dogs that afternoon
R|I'd prefer it without rain
R|get rid of the drizzle
R|we had terrible rain at the race
R|can you please erase all the rain lines
H|everything is behind a veil of mist
H|remove that ugly haze from the skyline
H|the fog needs to disappear
H|fog be gone
H|too much smoke in the air
H|This picture is foggy, help!
B|I was on a moving train when I shot it, so it's blurred
B|it isn't sharp enough
B|sharpness is missing
B|my arm was trembling
B|fix blur
B|looks shaky to me
D|sadly I missed the focus
D|The dog's face is not in focus
D|bring the flower into focus
D|it was focused on the wrong person
L|there wasn't enough light
L|it's very dark, lighten it a bit
L|I forgot the flash
L|Everything is too dim
L|brighten the picture so that I can see her face
L|bit gloomy, isn't it
J|lots of jpeg blocks in the sky
J|the compression destroyed my picture
J|get rid of the artefacts
J|it was compressed too much
U|Low-res picture, improve the resolution please
U|It's all pixelated when I print it
U|I need a bigger version of this
NL|brighten and denoise my night shots
RB|remove the rain and the motion blur
HL|foggy and dim
NJ|noise + jpeg artifacts
DB|out of focus and shaky too
RHL|dark, rainy and misty
R+H|fog is okay, rain isn't
R+H|please only remove the rain, I like the fog
R+H|keep the mist but lose the rain
N+B|denoise it but don't sharpen it
L+H|make it brighter but let the fog stay
B+L|make it sharper but leave it dark
N+R|noise away, rain stays
H+N|dehaze without denoising
RN+H|no rain, no noise, but keep the haze
J+N|Get rid of the blocks but please do not smooth away the grain
A+R|please don't derain
A+R|the rain makes it romantic, keep it
A+H|I really love the fog
A+H|do whatever you want but keep the fog
A+N|preserve film grain
A+B|I blurred it on purpose
A+D|the out of focus background is intended
A+L|don't lighten it
A+RN|clean everything except rain and noise
R|Remove nothing other than the rain
N|leave it all but take the noise away
B|it's not dark at all, just blurred
N|not raining, it's just noise
L|I don't like that it's so dark
H|don't you see the fog?
0|don't change a thing
0|nothing needs fixing
0|good as it is
0|it looks great
0|all good
+R|remove rain but also keep rain
N|remoev noize
R|git rid of teh rain
H|to much fogg
L|make it britgher
B|fix blurr
W|a child with a kite
W|autumn leaves in a park
W|the foggy moors of Scotland
W|dark clouds over the sea
W|cyclists in the rain
W|an old man reading a newspaper
W|sunrise above the clouds
W|a white church on a hill
W|New York at night
R|rainy photograph of a street
H|hazy shot from the plane
B|a blurry snapshot
A|make it beautiful please
A|remove the power lines
A|fix my hair
A|make me look younger
A|put a hat on him
A|more vivid colours
A|can you restore it?
A|make it black and white
N|My camera's old and the picture is terribly noisy.
N|Make the noise disappear, would you?
N|There's this weird speckling on the wall
N|can u remove the grain pls
N|I dont like all this grain
R|we got soaked, rain everywhere
R|The rain has ruined our picnic picture
R|please clean the raindrops off
R|I'd love to see this scene without rain
R|rain rain go away
H|Visibility was bad because of the fog
H|I can barely see the tower through the haze
H|take the mist out of the valley, please
H|Fog is covering the whole bridge
H|defog this picture for me
B|She moved her head when I pressed the shutter
B|my photos always come out blurry
B|Could you please make the text sharper
B|There is some motion blur on the cyclist
B|not crisp at all
D|wrong thing in focus
D|Please correct the focus
D|It's slightly out of focus
L|we forgot to switch the light on
L|the picture is darker than it should be
L|It needs to be brighter
L|I can't recognise anyone, it's so dark
L|Increase the exposure
L|give it more light
J|squares everywhere after I posted it on Facebook
J|it's a bad jpeg
J|Please repair the compression damage
U|I only have this in low resolution
U|make it high res
U|upscale 2x
NL|Dark and full of noise
RB|The rain and the blur have to go
HN|please get rid of haze and noise
JN|noise, jpeg artifacts, the lot
R+H|I love how misty it is, but I can't stand the rain
R+N|Derain, but the grain must stay.
H+R|remove fog; don't you dare remove the rain
N+H|only remove noise, the haze is wanted
L+N|brighten it but don't you touch the grain
B+L|fix the blur and keep the darkness
N+J|denoise, ignore the compression
A+H|whatever happens, the fog stays
A+R|rain is what makes this photo
A+N|I'm fond of the grain
A+B|no deblurring
A+L|it's dark on purpose
A+HR|you can fix anything but fog and rain
R|all good apart from the rain
N|nothing bothers me except the noise
B|not foggy, not dark, only blurry
L+N|the noise doesn't matter, it's the darkness that bothers me
0|no complaints
0|it's good enough
0|leave it
W|boats in the harbour at sunset
W|a lonely tree in the mist
W|a crowded street in Mumbai
W|rainy afternoon, people with umbrellas
W|mountain lake with reflections
H|misty photo
NL|very noisy night photo of the skyline
A|can you fix it please
A|remove the bird from the sky
A|make her smile
A|frame it
A+R|the rain is no problem
A+N|don't worry about the noise
N+R|denoise, and don't worry about the rain
R|spare me the rain
A+R|let the rain be
A+R|never mind the rain
A+R|I have nothing against rain
A+R|the rain is important to me
A+R|rain gives it character
A+H|the fog sets the mood
A+H|that fog is wanted
R|I could do without the rain
A+R|I can live with the rain
R|keep the rain out
R|keep out the rain
A+R|leave the rain be
N+R|rain good, noise bad
A+R|please avoid removing the rain
A+R|no way you remove the rain
H+R|the fog can go but the rain? do not touch it
N|ISO noise everywhere
N|My picture has too much noise. Thanks!
R|drops of rain on the lens, get rid of them
R|the storm brought so much rain
H|I'd like a clear view without the fog
H|So misty!
B|the whole thing is a bit blurred
B|grandma's hands shake and so do her photos
D|everyone is out of focus
L|it's night and I see nothing
L|please lighten up the picture
J|the jpeg compression is awful
U|way too pixelated for printing
NR|noise and rain are what bother me
HL|I want it brighter and without fog
BN|grain, blur... can you do something?
R+H|without the rain please, but the fog can remain
R+H|I'd keep the fog and get rid of the rain
R+H|let the fog be and take the rain out
N+L|take the grain away; darkness is part of the mood
B+N|blur has to go, but the noise I like
H+B|the haze please, not the blur
N+R|only noise. Not rain.
J+R|the compression artifacts, but not the rain, should be removed
L+HN|brighten it, while fog and grain stay
A+R|is it possible to keep the rain?
A+H|please make sure that the fog is not removed
A+N|grain is good, everything else may be improved
A+B|the blur shows the speed, keep it
A+D|I like the soft bokeh
A+RH|neither rain nor fog should be touched
A+N|it must remain grainy
R|Everything is nice, only the rain isn't
N|I can't say that I like the noise
L|I would not call it bright
H|please do not leave the fog in
0|keep it as is
0|no edits needed
W|a lighthouse at dusk
W|three sheep on a foggy meadow
W|my brother and his bike
W|dim bar with neon lights
R|some rainy picture I took
A|please improve the quality
A|remove the scratches
A|make the grass greener
A|add a rainbow
N|nioise redcution plz
H|defgo
R|delete teh rian drops
"""
NAMES = {
    "noise": "grain",
    "rain": "rain",
    "haze": "fog",
    "blur": "motion blur",
    "defocus": "defocus",
    "lowlight": "darkness",
    "jpeg": "compression artifacts",
    "downup": "pixelation",
}
REMOVE_ONE_KEEP_ONE = """
remove the X but keep the Y
keep the Y but remove the X
Remove the X, keep the Y.
Keep the Y. Remove the X.
remove the X and keep the Y
the Y stays, the X goes
the X must go but the Y may stay
get rid of the X without touching the Y
without touching the Y, get rid of the X
I like the Y but not the X
I hate the X but I love the Y
not the Y but the X
remove the X, not the Y
remove only the X; the Y is fine
please take out the X while keeping the Y
don't remove the Y, remove the X
don't keep the X, keep the Y
the Y should not be removed, but the X should
no X, but leave the Y
could you remove the X and leave the Y alone?
I'd like to keep the Y and lose the X
clean up the X but don't touch the Y
I don't want the X but I do want the Y
the X bothers me, the Y does not
the X is ugly but the Y is beautiful
reduce X, preserve Y
less X please, and leave Y as it is
there is too much X, but I don't mind the Y
instead of the Y, remove the X
remove the X instead of the Y
keep the Y when you remove the X
when removing the X, keep the Y
the Y is part of the picture, the X isn't
Y yes, X no
fix the X, leave the Y
you can remove the X, but you must not remove the Y
make sure the Y stays and the X disappears
let the X vanish and let the Y stay
I want the X gone and the Y kept
I want the X removed, the Y preserved
do something about the X but nothing about the Y
never touch the Y; the X is what bothers me
"""
REMOVE_BOTH = """
remove the X and the Y
remove X and Y
no X, no Y
neither X nor Y
get rid of X as well as Y
the X and the Y must go
there is X and Y
too much X and too much Y
I don't want X or Y
don't leave any X or Y
X, Y
X & Y
clean up both the X and the Y
remove the X; the Y too
"""
KEEP_BOTH = """
keep the X and the Y
don't remove the X or the Y
don't touch the X and the Y
I like the X and the Y
the X and the Y may stay
leave X and Y alone
everything except X and Y
remove everything but the X and the Y
X and Y are fine
please keep both X and Y
neither the X nor the Y should be removed
I don't mind the X or the Y
"""


@pytest.fixture(scope="module")
def reader() -> InstructionReader:
    return InstructionReader()


def read_lines(text: str) -> list[tuple[str, str]]:
    """Code and sentence of each line."""
    return [tuple(line.split("|", 1)) for line in text.strip().splitlines()]


def written(instruction, sentence: str) -> str:
    """An instruction in the code of the lists above."""
    keys = {label: letter for letter, label in LETTERS.items()}
    kept = "".join(sorted(keys[label] for label in instruction.keep))
    if instruction.remove is None:
        assert instruction.prompt in (None, sentence)
        removed = "A" if instruction.prompt is None else "W"
    else:
        assert instruction.prompt is None
        removed = "".join(sorted(keys[label] for label in instruction.remove)) or "0"
    return f"{removed}+{kept}"


def expected(code: str) -> str:
    removed, _, kept = code.partition("+")
    return f"{''.join(sorted(removed)) or '0'}+{''.join(sorted(kept))}"


def pairs() -> list[tuple[str, str]]:
    return list(itertools.permutations(NAMES, 2))


@pytest.mark.parametrize(("code", "sentence"), read_lines(DESIGN))
def test_the_examples_of_the_design_come_out_as_given(reader, code, sentence):
    assert written(reader(sentence), sentence) == expected(code)


def test_the_sentences_of_the_development_come_out_as_given(reader):
    wrong = [
        (sentence, written(reader(sentence), sentence))
        for code, sentence in read_lines(DEVELOPMENT)
        if written(reader(sentence), sentence) != expected(code)
    ]
    assert not wrong


def test_of_the_sentences_set_aside_95_in_100_are_read_exactly(reader):
    assert len({entry["sentence"] for entry in HELD_OUT}) == 200
    exact = 0
    for entry in HELD_OUT:
        instruction = reader(entry["sentence"])
        remove = ("auto",) if instruction.remove is None else instruction.remove
        assert not set(remove) & set(entry["keep"]), entry["sentence"]
        exact += (
            set(remove) == set(entry["remove"])
            and set(instruction.keep) == set(entry["keep"])
            and instruction.prompt == entry.get("prompt")
        )
    assert exact / len(HELD_OUT) >= 0.95


@pytest.mark.parametrize("sentence", REMOVE_ONE_KEEP_ONE.strip().splitlines())
def test_what_is_asked_to_be_kept_is_never_removed(reader, sentence):
    for removed, kept in pairs():
        instruction = reader(sentence.replace("X", NAMES[removed]).replace("Y", NAMES[kept]))
        assert (instruction.remove, instruction.keep) == ((removed,), (kept,))


@pytest.mark.parametrize("sentence", REMOVE_BOTH.strip().splitlines())
def test_two_wishes_are_both_heard(reader, sentence):
    for first, second in pairs():
        instruction = reader(sentence.replace("X", NAMES[first]).replace("Y", NAMES[second]))
        assert set(instruction.remove) == {first, second} and instruction.keep == ()


@pytest.mark.parametrize("sentence", KEEP_BOTH.strip().splitlines())
def test_two_things_are_kept_and_the_rest_is_found_out(reader, sentence):
    for first, second in pairs():
        instruction = reader(sentence.replace("X", NAMES[first]).replace("Y", NAMES[second]))
        assert instruction.remove is None and set(instruction.keep) == {first, second}


def test_the_labels_are_those_of_the_restorer_in_its_order(reader):
    assert list(source.FAULTS) == list(TASKS.values())
    everything = "pixelated, blocky, dark, out of focus, blurry, foggy, rainy, noisy"
    assert reader(everything).remove == tuple(TASKS.values())


def test_it_says_how_it_understood(reader):
    understood = {
        "take out the rain but leave the fog": "removing rain; keeping haze",
        "keep the grain": "finding out by itself what to remove; keeping noise",
        "make it pop": "nothing particular was understood; finding out by itself",
        "fine as it is": "removing nothing",
        "a red bus at night": "a description of the photo; finding out by itself what to remove",
        "too dark and blocky": "removing darkness, JPEG artifacts",
    }
    for sentence, line in understood.items():
        assert reader(sentence).understood == line


def test_in_a_contradiction_keep_wins_and_is_said(reader):
    instruction = reader("remove and keep the noise")
    assert instruction.remove == () and instruction.keep == ("noise",)
    assert any("noise" in note and "kept" in note for note in instruction.notes)
    assert reader("remove the noise").notes == ()


def test_a_wish_for_something_else_is_said_to_be_none_of_ours(reader):
    assert any("none of" in note for note in reader("remove the car").notes)


def test_quotes_dashes_accents_and_capitals_make_no_difference(reader):
    for sentence in ("It\u2019s dark", "IT'S DARK", "its dark", "it\u00b4s dárk", "it's — dark"):
        assert reader(sentence).remove == ("lowlight",)
    for sentence in ("don\u2019t remove the fog", "dont remove the fog", "DON'T REMOVE THE FOG"):
        assert reader(sentence).keep == ("haze",)
    assert reader("de-noise").remove == reader("low-light, de-noise").remove[:1] == ("noise",)


def test_typing_errors_are_mended_and_real_words_are_not(reader):
    for sentence in ("niose", "remvoe the rian", "undrexposed", "blury", "fgoggy", "raaaain"):
        assert reader(sentence).remove, sentence
    for word in ("brain", "train", "drain", "grail", "nurse", "hazel", "blurb", "shady", "froggy"):
        assert reader(f"a {word} on the table").prompt == f"a {word} on the table"
    assert reader("grain").remove == ("noise",) and reader("rain").remove == ("rain",)


def test_no_everyday_word_is_listed_in_vain():
    words = source.ENGLISH.split()
    assert len(words) == len(set(words)) < 500
    assert not set(words) & source.correctable_words()


@pytest.mark.parametrize("text", ["", " \n\t ", None, 7, ["rain"], b"rain"])
def test_what_is_no_text_or_empty_is_refused(reader, text):
    with pytest.raises(ValueError, match="`instruction`"):
        reader(text)


def test_other_alphabets_are_left_to_auto_and_said(reader):
    for text in ("убери дождь", "去掉雨", "أزل المطر", "雨を取り除いて", "Αφαίρεσε τη βροχή"):
        instruction = reader(text)
        assert instruction.remove is None and instruction.keep == ()
        assert instruction.prompt is None and "only English is read" in instruction.notes
    assert reader("🌧️❌").remove is None and reader("\x00").remove is None


def test_a_long_text_is_cut_and_that_is_said(reader):
    instruction = reader("the sky is blue " * 200 + "remove the rain")
    assert instruction.remove is None
    assert instruction.notes[0] == "only the first 2,000 characters were read"
    assert InstructionReader(max_characters=10)("too noisy, remove the rain").remove == ("noise",)


@pytest.mark.parametrize(
    "text",
    [
        "remove the rain but keep the fog, " * 3000,
        "niose " * 20000,
        "already " * 15000,
        "undrexposedcompresionartefcatszzz " * 3000,
        "a" * 100_000,
        "not " * 25000,
        "\ufdfa" * 100_000,
        "don't, " * 15000,
        "grain and " * 10000,
    ],
)
def test_a_hundred_thousand_characters_are_read_at_once(reader, text):
    reader(text[:100])  # builds the tables
    times = []
    for _ in range(3):
        start = time.process_time()
        reader(text)
        times.append(time.process_time() - start)
    assert min(times) < 0.05


def test_no_text_breaks_it(reader):
    generator = random.Random(0)
    phrases = [" ".join(phrase) for phrase in source.lexicon()]
    signs = [", ", " ", ". ", " and ", " but ", "; ", "? ", " not ", " - ", "'", "\n", "("]
    for _ in range(2000):
        parts = generator.choices(phrases + signs * 30, k=generator.randint(1, 12))
        instruction = reader("".join(parts) + "x")
        assert not set(instruction.remove or ()) & set(instruction.keep)
        assert set(instruction.keep) <= set(TASKS.values()) and instruction.understood


def test_an_instruction_cannot_be_changed(reader):
    with pytest.raises(FrozenInstanceError):
        reader("rain").remove = ()


def test_saved_and_loaded_it_reads_the_same(tmp_path):
    InstructionReader(max_characters=20).save_pretrained(tmp_path)
    loaded = InstructionReader.from_pretrained(tmp_path)
    assert loaded.max_characters == 20
    sentence = "take out the rain but leave the fog"
    assert loaded(sentence) == InstructionReader(max_characters=20)(sentence)


class ReadingPipeline(DiffusionPipeline):
    """A pipeline that holds a reader and nothing else."""

    def __init__(self, instruction_reader):
        super().__init__()
        self.register_modules(instruction_reader=instruction_reader)


def test_a_pipeline_takes_it_along_with_its_file_alone(tmp_path):
    ReadingPipeline(InstructionReader(max_characters=500)).save_pretrained(tmp_path)
    folder = tmp_path / "instruction_reader"
    shutil.copyfile(source.__file__, folder / "instruction_reader.py")
    index_file = tmp_path / "model_index.json"
    index = json.loads(index_file.read_text(encoding="utf-8"))
    index["instruction_reader"] = ["instruction_reader", "InstructionReader"]
    index_file.write_text(json.dumps(index), encoding="utf-8")
    pipe = ReadingPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(pipe.instruction_reader) is not InstructionReader
    assert pipe.instruction_reader.max_characters == 500
    assert pipe.instruction_reader("lose the rain, keep the fog").keep == ("haze",)


def test_its_file_needs_nothing_of_the_project():
    lines = Path(source.__file__).read_text(encoding="utf-8").splitlines()
    imported = {
        line.split()[1].split(".")[0] for line in lines if line.startswith(("from", "import"))
    }
    assert imported <= {
        "re",
        "unicodedata",
        "dataclasses",
        "functools",
        "typing",
        "transformers",
    }
