//! Story plots: lists of sentence patterns.
//!
//! `A` is the hero and `B` a friend. `he him his` are the hero's pronouns, `bhe` ... the friend's,
//! `khe` ... those of a relative (`kin`). A line break starts a new paragraph.

/// Openings.
pub(super) const OPENINGS: &[&str] = &[
    "There was once a [kind|cheerful|curious|clever|quiet|gentle] {being} named {A}, who lived [near|not far from] {place}. \
     One {time}, {A} [walked|ran|went] to {place} with {B}. {weather}",
    "{A} was a [little|young|friendly|lively] {being} who [loved|liked] to be {at}. It was {a_sky} {time}. {weather} \
     {A} and {B} [met|came together] {at}.",
    "On {a_sky} {time}, {A} [woke up|got up] early. {weather} {He} [put on {his} shoes|ate {his} breakfast|washed {his} face] \
     and [went|hurried] to {place}. {His} friend {B} was [already|waiting] there.",
    "Long ago, a [small|brave|merry|careful] {being} named {A} had a [good|dear|true] friend. The friend's name was {B}. \
     One {time} they were {at}. {weather}",
];

/// Plots.
pub(super) const PLOTS: &[&[&str]] = &[
    // Something is lost and found.
    &[
        "\n{A} had [brought|taken along] {a_thing}. It was a [gift|present] from {his} {kin}, and {he} [loved it very much|was proud of it].",
        " But after they had [played|run around] for [an hour|a while], the {noun} was [gone|not there any more].",
        " \"[Oh no|Oh dear]!\" [cried|said] {A}. \"I have lost my {thing}!\" {He} was so sad that {he} [began to cry|could not speak|sat down on the ground].",
        "\n\"Do not [worry|cry],\" said {B}. \"[We will find it|I will help you look for it|Let us look together].\"",
        " They looked [under every bush|behind every tree|beside the path] and [asked everyone whom they met|called to the birds for help|walked all the way back].",
        " At last {B} saw something [under a bench|behind a big stone|in the tall grass|between two roots]. It was the {noun}!",
        "\n{A} [hugged|thanked] {bhim}. \"[You are a true friend|I could not have found it alone],\" {he} said. Then they [shared|ate] {food}.",
    ],
    // A quarrel about one thing.
    &[
        "\nThey found {a_thing} [lying in the grass|on a wall|beside the path]. \"I saw it first!\" said {A}. \"No, I did!\" [said|shouted] {B}.",
        " {A} pulled on one side and {B} pulled on the other side. [Suddenly|Then] there was a [loud|sharp] crack, and the {noun} [broke|was broken].",
        " Now nobody could [play with|have] it. They were both [very quiet|ashamed|unhappy].",
        "\n\"I am sorry,\" said {A} [at last|after a while]. \"I [wanted it all for myself|did not listen to you].\" \"I am sorry too,\" said {B}.",
        " They [took|carried] the {noun} to {A}'s {kin}, who had [some glue|a box of tools]. {Khe} [helped them mend it|showed them how to mend it].",
        "\nFrom then on they took turns. {A} had the {noun} [on one day, and {B} had it on the next|in the morning, and {B} had it in the afternoon].",
    ],
    // Rain spoils a plan.
    &[
        "\nThey wanted to [have a picnic|play with the {thing}|build a hut of branches]. {A} had [packed|brought] {food}.",
        " But soon dark clouds came, and it [began|started] to rain. \"[Our day is spoiled|Now we cannot stay here]!\" said {B}, and {bhe} [looked sad|was angry].",
        " {A} [thought for a moment|looked around]. \"I know what we can do,\" {he} said. \"[Come with me|Follow me]!\"",
        "\nThey ran to the house of {A}'s {kin}, because it was [near|not far away]. {Khe} [opened the door|let them in] and gave them [dry socks|a warm blanket|hot tea].",
        " They sat by the [fire|window] and [told stories|sang songs|drew pictures] while the rain [fell|beat on the roof].",
        "\nWhen the rain stopped, there was a [big|bright] rainbow over {place}. \"[This was the best day of all|I am glad that it rained],\" said {B}.",
    ],
    // Fear and courage.
    &[
        "\n{B} [climbed|jumped] onto a [high|tall] wall and called, \"Come up, {A}!\" But {A} was afraid. {His} [knees|hands] were shaking.",
        " \"I cannot do it,\" {he} said. \"[What if I fall?|It is too high for me.]\"",
        "\n{B} did not laugh. {Bhe} climbed down and [took {his} hand|stood beside {him}]. \"I was afraid too, the first time,\" {bhe} said. \"[Start with one small step|Do not look down].\"",
        " So {A} [took a deep breath|closed {his} eyes for a moment] and took one step. Then {he} took another one, and another.",
        " [Soon|Before long] {he} was [at the top|sitting on the wall]. {He} could see [the whole village|the river and the hills|the roofs of all the houses].",
        "\n\"I did it!\" {A} [shouted|called|said]. That evening {he} told {his} {kin} about it, and the whole family was very proud of {him}.",
    ],
    // A hurt creature.
    &[
        "\n[Suddenly|Then] they heard a [small|weak|sad] sound. It came from [a bush|the tall grass|behind a stone]. There sat a little {creature} that had hurt its leg.",
        " \"[Poor thing|Poor little {creature}],\" said {A}. \"It cannot walk. [We must help it|We cannot leave it here].\"",
        "\n{B} [ran to get|brought] some water, and {A} carried the {creature} home in {his} [hat|basket|coat]. {His} {kin} knew what to do. {Khe} put a [clean|soft] cloth around the leg.",
        " For [three days|five days|a week] {A} [fed it|gave it food] every morning, and {B} came [each|every] afternoon to see it.",
        " The {creature} grew stronger, [and one day it could walk again|until it could stand on all its legs].",
        "\nThey took it back to {place} and said goodbye. {A} was [sad and happy at once|a little sad]. But from that day on, the {creature} [came|waited] there to greet them.",
    ],
    // A mistake and the truth.
    &[
        "\nLater they played [with a ball|catch] in the house of {A}'s {kin}, although they were not allowed to. The ball [hit|struck] {a_thing} that stood on the [shelf|table], and it fell down and broke.",
        " \"[Nobody saw us|Nobody will know],\" said {B}. \"Let us [hide it|say that the cat did it].\" So they [hid it under the bed|put it behind a curtain].",
        "\nBut {A} could not [eat|sleep] that evening. {He} [kept thinking|thought and thought] about the broken {noun}.",
        " In the morning {he} went to {his} {kin}. \"I broke your {noun},\" {he} said [quietly|in a small voice]. \"I am [very|so] sorry.\"",
        " {His} {kin} [was silent for a moment|looked at {him}]. \"[Thank you for telling me the truth|I am glad that you told me],\" {khe} said. \"A {noun} can be [mended|made again], but trust is hard to mend.\"",
        "\n{A} and {B} [worked|helped] in the garden for [two days|three days] to pay for it, and [their hearts were light again|they felt much better].",
    ],
    // Helping an old neighbor.
    &[
        "\nThere they met an old [farmer|baker|fisherman] with a [heavy|full] cart. One wheel was [stuck in the mud|broken]. \"[I have to be at the market before noon|My back is old and I am tired],\" he said.",
        " \"We will help you,\" said {A}. {He} [pushed|lifted] with all {his} [strength|might], and {B} [pulled at the rope|put stones under the wheel].",
        " The cart did not move. \"[Once more|Let us try again]!\" {A} [called|cried]. They pushed again, and [slowly|at last] the wheel [turned|came free].",
        "\nThe old man [laughed with joy|smiled]. He reached into the cart and gave them {food}, and to {A} he gave {a_thing}. \"[You have earned it|This is for your kindness],\" he said.",
        " {A} gave the {noun} to {B} [on the way home|that evening]. \"You [worked as hard as I did|helped him too],\" {he} said, \"so it belongs to both of us.\"",
    ],
    // A race.
    &[
        "\nThat day there was a race {at}. The [winner|fastest runner] would get {a_thing}. {A} wanted to win [more than anything|very much], for {he} had [practiced|trained] for weeks.",
        " \"One, two, three, go!\" [shouted|called] the {kin} of {A}, and everyone ran. {A} was [in front|faster than all the others]. {B} was just behind {him}.",
        "\nThen {B} [fell over a root|slipped on the wet ground|stumbled]. \"Ouch! My foot!\" {bhe} cried. {A} [looked back|heard it]. {He} could already see the [end|finish].",
        " But {he} [stopped|turned around] and went back. {He} [helped {bhim} up|gave {bhim} {his} hand], and they walked [slowly|side by side] to the finish, the last of all.",
        "\nEverybody clapped. \"{A} did not win the race,\" said {his} {kin}, \"but {he} [won something better|did something better].\" And {B} [said|whispered], \"[Thank you|I will never forget it].\"",
    ],
    // A strange sound.
    &[
        "\n[Suddenly|All at once] they heard a strange sound. \"[Hoo, hoo|Tap, tap, tap|Scratch, scratch],\" it went. \"What was that?\" [asked|whispered] {B}. \"[A ghost|A monster|A giant]!\"",
        " {B} wanted to run home, but {A} was [curious|not so sure]. \"[First let us look|Let us see what it is],\" {he} said, and {he} [picked up a stick|walked on very quietly].",
        " They [crept|went] closer and closer. The sound grew louder. {B} held {A}'s [hand|arm] and [closed {bhis} eyes|did not dare to breathe].",
        "\nBehind [an old door|a pile of wood|a thick bush] they found {a_creature}. It was [caught in an old net|stuck under a branch] and could not get out!",
        " {A} [laughed|smiled]. \"[So that is our monster|Look, what a terrible monster],\" {he} said. [Carefully|Gently] {he} [set it free|helped it out], and it was gone in a moment.",
        "\nThat night they told the story to {A}'s {kin}. {Khe} laughed until {khe} [cried|had to sit down], and then they all ate {food}.",
    ],
    // A present made by hand.
    &[
        "\nThe next day was the birthday of {A}'s {kin}. \"I want to give {khim} {a_thing},\" said {A}, \"but I have no [money|coins].\"",
        " \"Then we will make one,\" said {B}. They [looked for|gathered] [wood and string|paper and glue|clay and leaves], and they worked [until the evening|for hours].",
        " The first one [fell apart|was crooked], and the second one was [too small|even worse]. {A} wanted to give up. \"[Try once more|One more time],\" said {B}.",
        "\nThe third one was [good|beautiful]. {A} [wrapped it in leaves|tied a ribbon around it] and [ran|carried it] home.",
        " In the morning {his} {kin} opened the present. \"[Did you make this yourself|Who made this lovely {noun}]?\" {khe} asked. \"{B} helped me,\" said {A}.",
        "\n{His} {kin} [kissed|hugged] {him} and shared {food} with all of them. The {noun} [stood by the window|had the best place in the house] for many years.",
    ],
];

/// Endings.
pub(super) const ENDINGS: &[&str] = &[
    " [When the sun went down|In the evening], {A} and {B} walked home [together|hand in hand].",
    " And [that night|when {he} lay in bed], {A} [slept very well|dreamed of {place}].",
    " After that day, {A} and {B} were [better friends than ever|the best of friends].",
    " \"[Shall we come back tomorrow|Will you come again tomorrow]?\" asked {B}. \"[Yes|Of course|Always],\" said {A}.",
    " {A} never forgot that {time}.",
    "",
];
