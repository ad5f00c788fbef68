//! The words of the bilingual grammar, with the forms that agreement needs.

/// What a noun stands for, which decides on the preposition "a" before a person and on fitting adjectives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Person,
    Animal,
    Thing,
}

/// A noun: singular and plural in both languages, and its gender in Spanish.
#[derive(Debug)]
pub(super) struct Noun {
    pub(super) english: [&'static str; 2],
    pub(super) spanish: [&'static str; 2],
    pub(super) is_feminine: bool,
    pub(super) kind: Kind,
}

/// An adjective: English, and in Spanish masculine and feminine, each singular and plural.
#[derive(Debug)]
pub(super) struct Adjective {
    pub(super) english: &'static str,
    pub(super) spanish: [[&'static str; 2]; 2],
}

/// A verb: in English the base, the third person and the past (a second word follows each of them); in Spanish
/// the persons I, you, he, we, they in present and past.
#[derive(Debug)]
pub(super) struct Verb {
    pub(super) english: [&'static str; 3],
    pub(super) particle: &'static str,
    pub(super) spanish: [[&'static str; 5]; 2],
}

const fn noun(
    english: [&'static str; 2],
    spanish: [&'static str; 2],
    gender: char,
    kind: Kind,
) -> Noun {
    Noun {
        english,
        spanish,
        is_feminine: gender == 'f',
        kind,
    }
}

const fn adjective(
    english: &'static str,
    masculine: [&'static str; 2],
    feminine: [&'static str; 2],
) -> Adjective {
    Adjective {
        english,
        spanish: [masculine, feminine],
    }
}

const fn verb(
    english: [&'static str; 3],
    particle: &'static str,
    present: [&'static str; 5],
    past: [&'static str; 5],
) -> Verb {
    Verb {
        english,
        particle,
        spanish: [present, past],
    }
}

use Kind::{Animal, Person, Thing};

/// Nouns that can be subjects and objects: persons and animals first.
#[rustfmt::skip] // A table.
pub(super) const NOUNS: &[Noun] = &[
    noun(["boy", "boys"], ["niño", "niños"], 'm', Person),
    noun(["girl", "girls"], ["niña", "niñas"], 'f', Person),
    noun(["man", "men"], ["hombre", "hombres"], 'm', Person),
    noun(["woman", "women"], ["mujer", "mujeres"], 'f', Person),
    noun(["brother", "brothers"], ["hermano", "hermanos"], 'm', Person),
    noun(["sister", "sisters"], ["hermana", "hermanas"], 'f', Person),
    noun(["king", "kings"], ["rey", "reyes"], 'm', Person),
    noun(["queen", "queens"], ["reina", "reinas"], 'f', Person),
    noun(["dog", "dogs"], ["perro", "perros"], 'm', Animal),
    noun(["cat", "cats"], ["gato", "gatos"], 'm', Animal),
    noun(["horse", "horses"], ["caballo", "caballos"], 'm', Animal),
    noun(["cow", "cows"], ["vaca", "vacas"], 'f', Animal),
    noun(["hen", "hens"], ["gallina", "gallinas"], 'f', Animal),
    noun(["bird", "birds"], ["pájaro", "pájaros"], 'm', Animal),
    noun(["car", "cars"], ["coche", "coches"], 'm', Thing),
    noun(["table", "tables"], ["mesa", "mesas"], 'f', Thing),
    noun(["chair", "chairs"], ["silla", "sillas"], 'f', Thing),
    noun(["book", "books"], ["libro", "libros"], 'm', Thing),
    noun(["letter", "letters"], ["carta", "cartas"], 'f', Thing),
    noun(["apple", "apples"], ["manzana", "manzanas"], 'f', Thing),
    noun(["window", "windows"], ["ventana", "ventanas"], 'f', Thing),
    noun(["hat", "hats"], ["sombrero", "sombreros"], 'm', Thing),
    noun(["shirt", "shirts"], ["camisa", "camisas"], 'f', Thing),
    noun(["flower", "flowers"], ["flor", "flores"], 'f', Thing),
    noun(["tree", "trees"], ["árbol", "árboles"], 'm', Thing),
    noun(["shoe", "shoes"], ["zapato", "zapatos"], 'm', Thing),
    noun(["key", "keys"], ["llave", "llaves"], 'f', Thing),
    noun(["train", "trains"], ["tren", "trenes"], 'm', Thing),
];

/// Number of [`NOUNS`] that can be the subject of a verb.
pub(super) const SUBJECTS: usize = 14;

/// Where something happens.
#[rustfmt::skip] // A table.
pub(super) const PLACES: &[Noun] = &[
    noun(["house", "houses"], ["casa", "casas"], 'f', Thing),
    noun(["park", "parks"], ["parque", "parques"], 'm', Thing),
    noun(["garden", "gardens"], ["jardín", "jardines"], 'm', Thing),
    noun(["kitchen", "kitchens"], ["cocina", "cocinas"], 'f', Thing),
    noun(["school", "schools"], ["escuela", "escuelas"], 'f', Thing),
    noun(["street", "streets"], ["calle", "calles"], 'f', Thing),
    noun(["market", "markets"], ["mercado", "mercados"], 'm', Thing),
    noun(["city", "cities"], ["ciudad", "ciudades"], 'f', Thing),
];

/// Adjectives of anything.
#[rustfmt::skip] // A table.
pub(super) const ADJECTIVES: &[Adjective] = &[
    adjective("small", ["pequeño", "pequeños"], ["pequeña", "pequeñas"]),
    adjective("big", ["grande", "grandes"], ["grande", "grandes"]),
    adjective("old", ["viejo", "viejos"], ["vieja", "viejas"]),
    adjective("pretty", ["bonito", "bonitos"], ["bonita", "bonitas"]),
    adjective("white", ["blanco", "blancos"], ["blanca", "blancas"]),
    adjective("gray", ["gris", "grises"], ["gris", "grises"]),
];

/// Adjectives of things.
#[rustfmt::skip] // A table.
pub(super) const THING_ADJECTIVES: &[Adjective] = &[
    adjective("red", ["rojo", "rojos"], ["roja", "rojas"]),
    adjective("green", ["verde", "verdes"], ["verde", "verdes"]),
    adjective("blue", ["azul", "azules"], ["azul", "azules"]),
    adjective("new", ["nuevo", "nuevos"], ["nueva", "nuevas"]),
    adjective("expensive", ["caro", "caros"], ["cara", "caras"]),
];

/// Adjectives of persons and animals.
#[rustfmt::skip] // A table.
pub(super) const BEING_ADJECTIVES: &[Adjective] = &[
    adjective("young", ["joven", "jóvenes"], ["joven", "jóvenes"]),
    adjective("strong", ["fuerte", "fuertes"], ["fuerte", "fuertes"]),
    adjective("tall", ["alto", "altos"], ["alta", "altas"]),
    adjective("intelligent", ["inteligente", "inteligentes"], ["inteligente", "inteligentes"]),
];

/// How somebody feels: with "estar" in place of "ser".
#[rustfmt::skip] // A table.
pub(super) const STATES: &[Adjective] = &[
    adjective("tired", ["cansado", "cansados"], ["cansada", "cansadas"]),
    adjective("sick", ["enfermo", "enfermos"], ["enferma", "enfermas"]),
    adjective("happy", ["contento", "contentos"], ["contenta", "contentas"]),
    adjective("sad", ["triste", "tristes"], ["triste", "tristes"]),
];

/// Verbs with an object.
#[rustfmt::skip] // A table.
pub(super) const TRANSITIVE: &[Verb] = &[
    verb(["see", "sees", "saw"], "", ["veo", "ves", "ve", "vemos", "ven"], ["vi", "viste", "vio", "vimos", "vieron"]),
    verb(["buy", "buys", "bought"], "", ["compro", "compras", "compra", "compramos", "compran"],
        ["compré", "compraste", "compró", "compramos", "compraron"]),
    verb(["find", "finds", "found"], "", ["encuentro", "encuentras", "encuentra", "encontramos", "encuentran"],
        ["encontré", "encontraste", "encontró", "encontramos", "encontraron"]),
    verb(["wash", "washes", "washed"], "", ["lavo", "lavas", "lava", "lavamos", "lavan"],
        ["lavé", "lavaste", "lavó", "lavamos", "lavaron"]),
    verb(["paint", "paints", "painted"], "", ["pinto", "pintas", "pinta", "pintamos", "pintan"],
        ["pinté", "pintaste", "pintó", "pintamos", "pintaron"]),
    verb(["carry", "carries", "carried"], "", ["llevo", "llevas", "lleva", "llevamos", "llevan"],
        ["llevé", "llevaste", "llevó", "llevamos", "llevaron"]),
    verb(["look", "looks", "looked"], "for", ["busco", "buscas", "busca", "buscamos", "buscan"],
        ["busqué", "buscaste", "buscó", "buscamos", "buscaron"]),
    verb(["look", "looks", "looked"], "at", ["miro", "miras", "mira", "miramos", "miran"],
        ["miré", "miraste", "miró", "miramos", "miraron"]),
];

/// Verbs without an object.
#[rustfmt::skip] // A table.
pub(super) const INTRANSITIVE: &[Verb] = &[
    verb(["sleep", "sleeps", "slept"], "", ["duermo", "duermes", "duerme", "dormimos", "duermen"],
        ["dormí", "dormiste", "durmió", "dormimos", "durmieron"]),
    verb(["run", "runs", "ran"], "", ["corro", "corres", "corre", "corremos", "corren"],
        ["corrí", "corriste", "corrió", "corrimos", "corrieron"]),
    verb(["work", "works", "worked"], "", ["trabajo", "trabajas", "trabaja", "trabajamos", "trabajan"],
        ["trabajé", "trabajaste", "trabajó", "trabajamos", "trabajaron"]),
    verb(["wait", "waits", "waited"], "", ["espero", "esperas", "espera", "esperamos", "esperan"],
        ["esperé", "esperaste", "esperó", "esperamos", "esperaron"]),
    verb(["walk", "walks", "walked"], "", ["camino", "caminas", "camina", "caminamos", "caminan"],
        ["caminé", "caminaste", "caminó", "caminamos", "caminaron"]),
];

/// English pronouns with the index of the Spanish person, which has no pronoun.
pub(super) const PRONOUNS: &[(&str, usize)] = &[("I", 0), ("you", 1), ("we", 3), ("they", 4)];

/// Determiners: English singular and plural, and in Spanish masculine and feminine, each singular and plural.
#[rustfmt::skip] // A table.
pub(super) const DETERMINERS: &[([&str; 2], [[&str; 2]; 2])] = &[
    (["the", "the"], [["el", "los"], ["la", "las"]]),
    (["a", "some"], [["un", "unos"], ["una", "unas"]]),
    (["this", "these"], [["este", "estos"], ["esta", "estas"]]),
    (["my", "my"], [["mi", "mis"], ["mi", "mis"]]),
];
