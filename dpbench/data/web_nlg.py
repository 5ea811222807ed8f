"""WebNLG 2017: sentences from one to seven triples of DBpedia."""

from __future__ import annotations

from typing import Any

from dpbench.data import triples
from dpbench.data.described import Described

PLUGIN = {
    "kind": "dataset",
    "name": "web_nlg",
    "version": 2,
    "summary": "WebNLG 2017: sentences from triples of DBpedia",
    "task": "table_to_text",
    "folder": "web_nlg",
    "files": {"train": "train.parquet", "validation": "validation.parquet", "test": "test.parquet"},
    "columns": {"triples": "input", "text": "target", "references": "references"},
    "hub": None,
    "embedded": "restaurants",
    # What DBpedia says of airports, people, places, food, clubs and books: terms of its public vocabulary, not counted over rows.
    "words": """a an the this that it its is are was were be been being has have had having does do did and or but with without
    in on at by near next to from for of off as than also both while where which who whom whose he she they his her their him
    them there here can could will would not no after before during until since between among under over above below within
    into out up down through along against one two three four five six seven eight nine ten first second third last per about
    around approximately only just all any some every each other another more most less least than same such like
    airport airports serves serve served serving city cities town village county state province region district country
    countries nation capital located location lies sits situated found area areas elevation above sea level runway runways
    length long name names named called known nickname operated operator operates operating organisation organization hub
    iata icao identifier code headquarters headquartered headquarter founded founder foundation founding year years date day
    born birth place birthplace died death dead age astronaut crew member members mission space nasa selected selection test
    pilot commander backup spent minutes time hours retired retirement served status alma mater graduated graduate attended
    studied degree award awards awarded nationality national citizen occupation profession worked works work working job
    building buildings built build construction constructed began begun start started completed completion completion cost
    costs costed floor floors count square metres meters metre feet inches kilometres km architect architects designed design
    designer architecture architectural style owner owned owns tenant tenants developer developed address street road
    population density people inhabitants inhabitant demonym leader leaders leadership led lead mayor president prime minister
    chancellor governor council government type governing body parliament part parts language languages spoken speak ethnic
    group groups largest postal area code metro urban land water total river motto anthem
    comic comics character creator creators created creates appear appears appeared appearance voice voiced broadcast
    broadcasted aired series television film films episode episodes starring stars starred director directed producer produced
    alternative full airdate
    dish dishes food ingredient ingredients main contains contain include includes including included made make variation
    variations variant served course dessert origin originates originated comes come sauce rice bread meat sugar milk cream
    butter cheese egg chicken pork beef tomato garlic onion chocolate carbohydrate fat protein serving size temperature
    monument monuments memorial dedicated dedicates inaugurated inauguration established establishment legislature
    club clubs team teams football soccer basketball baseball league season champion champions championship won play plays
    played player players playing manager managed manages coach chairman ground grounds home stadium arena capacity member
    university universities college school campus students student staff academic faculty dean rector undergraduate
    postgraduate affiliated affiliation affiliations motto endowment sport sports offers offered
    book books novel author authors written write writes writer wrote published publisher publishes publishing publication
    genre media type print printed hardcover paperback pages page number numbers isbn oclc volume edition followed follow
    follows preceded precedes predecessor successor succeeded sequel journal magazine abbreviated abbreviation frequency
    released release literary
    album song single artist artists music musical musician band bands singer label record recorded recording instrument
    plays genre genres fusion derived derivative rock pop jazz metal folk punk active associated collaborated background
    planet asteroid celestial orbit orbital period periapsis apoapsis epoch escape velocity mass absolute magnitude
    discovered discoverer discovery surface rotation average speed mean former designation
    car cars vehicle vehicles ship ships engine engines assembly assembled manufacturer manufactured manufactures body style
    transmission wheelbase width height diameter cylinder power rocket launch launched site final flight flights maiden voyage
    company model models related class production layout
    politician party parties office elected election term vote votes constituency district military branch battle battles war
    wars army navy fought conflict commander rank spouse married wife husband child children son daughter parent parents
    resides residence lives lived religion successor region predecessor senator
    draft drafted pick debut position youth career caps goals weight kilograms
    american british english french german italian spanish indian chinese japanese european african asian western
    eastern northern southern north south east west united states kingdom s n u k""",
    "licence": "CC BY-NC-SA 4.0 (non-commercial)",
    "citation": "Gardent et al., INLG 2017",
}


def described(columns: dict[str, list[Any]]) -> list[Described]:
    """Return the fields (subject, relation, object) of `Aarhus_Airport | cityServed | "Aarhus, Denmark"`.

    A row without a list of references (in train, one text a row) has its target as its only text.
    """
    return [
        Described(triples.triples("input", entries), triples.texts("references", references) or (text,))
        for entries, text, references in zip(columns["triples"], columns["text"], columns["references"], strict=True)
    ]
