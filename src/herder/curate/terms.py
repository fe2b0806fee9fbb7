"""Short word lists of our own, as hashes: words of adult pages, and the function words that every sentence needs.

The dirty words are those that pages sell sex with (Raffel et al. 2020 count such words; the paper 3.1.1). Medical, legal and
everyday words for the same things are left out: a page on health must not fall. Words of spam are everyday words: many
different ones, close together, are what counts.
"""

from __future__ import annotations

from herder.curate.words import hash_terms

DIRTY = hash_terms(
    "porn porno pornos pornstar pornstars xxx milf milfs blowjob blowjobs handjob handjobs gangbang gangbangs cumshot cumshots "
    "creampie bukkake deepthroat dildo dildos camgirl camgirls sexcam sexcams hentai futanari fuck fucked fucker fuckers fucking "
    "fucks cunt cunts pussy pussies cock cocks dick dicks tits titties boobs boobies slut sluts whore whores horny cum cumming "
    "jizz wank wanking orgy orgies threesome anal buttplug fisting rimjob upskirt hardcore nsfw nudes masturbating bdsm bondage "
    "motherfucker motherfuckers asshole assholes shemale shemales escort escorts stripper strippers swinger swingers fetish "
    "erotica bitch bitches shit twat bollocks salope salopes putain bite chatte baise baiser enculer puta putas polla follar "
    "coño joder mamada zorra"
)

SPAM = hash_terms(
    "casino casinos slots jackpot poker betting gambling viagra cialis levitra pills pill slimming replica replicas rolex outlet "
    "designer handbags payday loan loans forex crypto bitcoin bonus bonuses deposit wholesale cheap cheapest discount discounts "
    "coupon coupons voucher backlinks seo traffic profit profits miracle exclusive instant approval mortgage insurance earn "
    "watches shoes trading signals free buy order shipping deal deals sale price win winner prize click claim offer offers now"
)

FUNCTION_WORDS = hash_terms(
    "the a an of to in and or for is are was were be been it its this that these those with as by on at from which not "
    "have has had if when can will you your we he his she her they their but all one into than more also may other such no i "
    "le la les un une des du de et ou en à au aux dans par pour sur avec est sont été qui que ne pas il elle ils se sa son ses "
    "ce cette plus d l s "
    "el los las uno una unos unas del al y o con por para es son fue que no se su sus lo como más este esta ha "
    "der die das ein eine und oder in im von zu mit auf für ist sind war nicht sich dem den des als auch wird bei an "
    "il gli uno di da nel della e che non si sono è per con "
    "os as um uma do da dos das em no na nos nas ao à não se é são foi mais"
)
