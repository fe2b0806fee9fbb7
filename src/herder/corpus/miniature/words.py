"""Text written for the miniature web: site furniture in three languages, eight other languages, names, formulas, spam words."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAVIGATION = {
    "en": "Home,News,Science,History,Culture,Travel,Sport,Technology,Shop,Contact,Archive,Forum,Help,Gallery,Events,Jobs",
    "fr": "Accueil,Actualités,Sciences,Histoire,Culture,Voyages,Sports,Technologie,Boutique,Contact,Archives,Forum,Aide",
    "es": "Inicio,Noticias,Ciencia,Historia,Cultura,Viajes,Deportes,Tecnología,Tienda,Contacto,Archivo,Foro,Ayuda",
}
COOKIES = {
    "en": (
        "We use cookies to improve your experience. By continuing you accept our cookie policy.|Accept all|Settings",
        "This site stores cookies on your device for statistics and advertising.|I agree|Reject|Learn more",
        "Your privacy matters to us. Choose which cookies we may set.|Allow selection|Allow all cookies",
    ),
    "fr": (
        "Nous utilisons des cookies pour améliorer votre visite. En continuant, vous acceptez leur usage.|Tout accepter",
        "Ce site dépose des cookies à des fins de mesure et de publicité.|J'accepte|Je refuse|En savoir plus",
    ),
    "es": (
        "Usamos cookies para mejorar su visita. Si continúa navegando, acepta su uso.|Aceptar todo|Configurar",
        "Este sitio guarda cookies con fines estadísticos y publicitarios.|De acuerdo|Rechazar|Más información",
    ),
}
FOOTERS = {
    "en": (
        "All rights reserved.|Terms of use|Privacy policy|Imprint|Back to top",
        "Powered by Quillpress.|Sitemap|Accessibility|Contact the webmaster",
        "Follow us on social media.|Newsletter|RSS|Advertise with us|Careers",
    ),
    "fr": (
        "Tous droits réservés.|Mentions légales|Confidentialité|Plan du site|Haut de page",
        "Suivez-nous sur les réseaux.|Lettre d'information|Publicité|Qui sommes-nous ?",
    ),
    "es": (
        "Todos los derechos reservados.|Aviso legal|Privacidad|Mapa del sitio|Volver arriba",
        "Síganos en las redes.|Boletín|Publicidad|Quiénes somos",
    ),
}
SHARING = {
    "en": ("Share this page", "Print", "Send by e-mail", "Save for later"),
    "fr": ("Partager cette page", "Imprimer", "Envoyer à un ami", "Enregistrer"),
    "es": ("Compartir esta página", "Imprimir", "Enviar a un amigo", "Guardar"),
}
RELATED = {"en": "You may also like", "fr": "À lire aussi", "es": "También le puede interesar"}
MORE = {"en": "Read more", "fr": "Lire la suite", "es": "Leer más"}
SEARCH = {"en": "Search this site", "fr": "Rechercher sur ce site", "es": "Buscar en este sitio"}
NEWSLETTER = {
    "en": "Sign up for our newsletter and never miss a story.",
    "fr": "Inscrivez-vous à notre lettre et ne manquez plus rien.",
    "es": "Suscríbase a nuestro boletín y no se pierda nada.",
}
ADVERT = {
    "en": ("Advertisement", "Sponsored: compare prices and save on your next order today"),
    "fr": ("Publicité", "Sponsorisé : comparez les prix et économisez dès aujourd'hui"),
    "es": ("Publicidad", "Patrocinado: compare precios y ahorre en su próximo pedido"),
}
BYLINE = {"en": "By {name}, {date}", "fr": "Par {name}, le {date}", "es": "Por {name}, {date}"}
PLACEHOLDER = {
    "en": ("Loading, please wait.", "This page is under construction.", "Please enable JavaScript.", "No entries yet."),
    "fr": ("Chargement en cours.", "Page en construction.", "Veuillez activer JavaScript.", "Aucun article."),
    "es": ("Cargando, espere.", "Página en construcción.", "Active JavaScript.", "Todavía no hay entradas."),
}

SITE_FIRST = _words(
    """amber birch cedar delta ember fjord garnet harbor indigo juniper kestrel lumen maple nimbus opal prairie quartz
raven saffron tundra umber violet willow zephyr acorn basalt coral dune echo flint"""
)
SITE_LAST = _words(
    """gazette chronicle pages library notes review journal almanac atlas digest corner reader post courier compass
archive hub world wiki docs manual"""
)
ENDINGS = {"en": ("com", "org", "net", "info"), "fr": ("fr", "org", "net"), "es": ("es", "org", "net")}

GIVEN = _words(
    """Ada Bruno Clara Dario Elena Felix Greta Hugo Ines Jonas Karin Luca Mara Nils Olga Paul Rosa Simon Tessa Uwe
Vera Walter Yara Zoe Amir Bella Cyril Dana Emil Flora"""
)
FAMILY = _words(
    """Abel Brandt Castell Dorn Ekberg Falk Garnier Holt Ibsen Jansen Keller Lind Moreau Novak Ortiz Perrin Quist
Romano Sander Thorn Ulrich Vidal Weber Ximenes Young Zeller Arnaud Bishop Cortez Drake"""
)

CONTACT = {
    "en": (
        "For questions about this article write to {email} or call {phone}.",
        "{name} can be reached at {email}.",
        "Reservations are taken by phone at {phone} every weekday.",
    ),
    "fr": (
        "Pour toute question, écrivez à {email} ou appelez le {phone}.",
        "{name} répond à l'adresse {email}.",
    ),
    "es": (
        "Para cualquier pregunta escriba a {email} o llame al {phone}.",
        "{name} responde en {email}.",
    ),
}

FORMULAS = (
    ("the Pythagorean theorem", "a^2 + b^2 = c^2"),
    ("the area of a circle", "A = \\pi r^2"),
    ("the quadratic formula", "x = \\frac{-b \\pm \\sqrt{b^2 - 4ac}}{2a}"),
    ("Euler's identity", "e^{i\\pi} + 1 = 0"),
    ("the law of gravitation", "F = G \\frac{m_1 m_2}{r^2}"),
    ("the mass-energy relation", "E = m c^2"),
    ("Ohm's law", "U = R I"),
    ("the ideal gas law", "p V = n R T"),
    ("the normal density", "f(x) = \\frac{1}{\\sigma \\sqrt{2\\pi}} e^{-\\frac{(x-\\mu)^2}{2\\sigma^2}}"),
    ("the geometric series", "\\sum_{k=0}^{n} q^k = \\frac{1 - q^{n+1}}{1 - q}"),
    ("the binomial theorem", "(a + b)^n = \\sum_{k=0}^{n} \\binom{n}{k} a^{n-k} b^k"),
    ("the derivative", "f'(x) = \\lim_{h \\to 0} \\frac{f(x+h) - f(x)}{h}"),
    ("integration by parts", "\\int u \\, dv = u v - \\int v \\, du"),
    ("Bayes' rule", "P(A \\mid B) = \\frac{P(B \\mid A) P(A)}{P(B)}"),
    ("the entropy of a source", "H = -\\sum_{i} p_i \\log_2 p_i"),
    ("the half-life", "N(t) = N_0 \\, 2^{-t / T}"),
    ("the wave equation", "\\frac{\\partial^2 u}{\\partial t^2} = c^2 \\nabla^2 u"),
    ("the cosine rule", "c^2 = a^2 + b^2 - 2ab \\cos \\gamma"),
    ("compound interest", "K_n = K_0 (1 + p)^n"),
    ("the lens equation", "\\frac{1}{f} = \\frac{1}{g} + \\frac{1}{b}"),
)
FORMULA_SENTENCES = {
    "en": ("A formula often quoted here is {what}: {tex}.", "Compare {what}, which reads {tex} in the usual notation."),
    "fr": ("On cite souvent la formule {tex} à ce propos.", "En notation usuelle, cela s'écrit {tex}."),
    "es": ("Suele citarse aquí la fórmula {tex}.", "En la notación habitual se escribe {tex}."),
}

IMAGE_ALTS = {
    "en": (
        "Photograph of {title} taken in good light",
        "Map that shows where {title} is found",
        "Drawing of {title} by {name}",
    ),
    "fr": ("Photographie de {title} prise par {name}", "Carte qui situe {title}"),
    "es": ("Fotografía de {title} tomada por {name}", "Mapa que sitúa {title}"),
}
IMAGE_ALTS_TECHNICAL = (
    "Diagram of the parts of {title}",
    "Screenshot that shows {title} at work",
    "Sketch of {title} by {name}",
)
TABLE_WORDS = {
    "en": (("Subject", "Field", "Length in words", "Last revision", "Editor"), "Facts"),
    "fr": (("Sujet", "Domaine", "Longueur en mots", "Dernière révision", "Responsable"), "Faits"),
    "es": (("Tema", "Campo", "Longitud en palabras", "Última revisión", "Editor"), "Datos"),
}

KEYWORDS = _words(
    """cheap discount watches replica handbags designer shoes online pharmacy pills loan mortgage credit casino poker
slots bonus betting insurance quote free shipping best price buy now deal coupon voucher weight loss diet miracle cream
crypto bitcoin trading signals profit investment rolex outlet sale wholesale hosting seo backlinks traffic"""
)
SPAM_LINES = (
    "Click here now to claim your exclusive bonus before the offer ends!!!",
    "Buy cheap replica watches online with free shipping worldwide today!!!",
    "Best online casino bonus no deposit required, play slots and win big!!!",
    "Lose weight fast with this one miracle pill, order now and save 80%!!!",
    "Instant loan approval, no credit check, money in your account in minutes!!!",
)
ADULT_WORDS = _words(
    """porn xxx nude naked sex milf hentai escorts webcam hardcore blowjob tits pussy anal cumshot camgirl
fetish orgy stripper erotic"""
)
ADULT_SENTENCES = (
    "Watch free {a} {b} videos with {c} girls in full length.",
    "The hottest {a} cams with {b} and {c} shows are live right now.",
    "Our {a} gallery has thousands of {b} photos and {c} clips for adults only.",
    "Find {a} contacts near you, {b} chat and {c} dating without registration.",
    "New {a} movies every day: {b}, {c} and much more {a}.",
    "Join tonight for uncensored {a}, amateur {b} and private {c} sessions.",
)

OTHER_LANGUAGES = {
    "de": (
        "Der alte Leuchtturm steht seit mehr als hundert Jahren auf den Klippen im Norden.",
        "Am Morgen öffnet der Bäcker seinen Laden, noch bevor die ersten Züge fahren.",
        "Viele Wanderer gehen den Weg durch das Tal, weil er im Schatten der Bäume liegt.",
        "Die Stadt hat im letzten Jahr eine neue Bibliothek mit großem Lesesaal gebaut.",
        "Im Winter friert der See zu, und die Kinder laufen Schlittschuh bis zum Abend.",
        "Niemand wusste genau, woher die Glocke kam, die im Turm der Kirche hing.",
        "Das Museum zeigt Werkzeuge, mit denen man früher Schiffe aus Holz baute.",
        "Nach dem Regen roch die ganze Straße nach nassem Stein und frischem Gras.",
        "Die Brücke wurde im Jahr {n} erneuert und trägt seitdem auch schwere Lastwagen.",
        "Meine Großmutter erzählte oft, dass früher {n} Menschen in diesem Dorf lebten.",
        "Wer den Gipfel erreichen will, sollte warme Kleidung und genug Wasser mitnehmen.",
        "Auf dem Markt verkauft man Käse, Honig und Äpfel aus den umliegenden Höfen.",
    ),
    "it": (
        "Il vecchio faro si trova sulla scogliera a nord da oltre cento anni.",
        "La mattina il fornaio apre la bottega prima che passino i primi treni.",
        "Molti camminatori scelgono il sentiero nella valle perché è all'ombra degli alberi.",
        "L'anno scorso la città ha costruito una nuova biblioteca con una grande sala di lettura.",
        "D'inverno il lago si ghiaccia e i bambini pattinano fino a sera.",
        "Nessuno sapeva da dove venisse la campana appesa nella torre della chiesa.",
        "Il museo mostra gli attrezzi con cui una volta si costruivano le navi di legno.",
        "Dopo la pioggia tutta la strada profumava di pietra bagnata e di erba fresca.",
        "Il ponte fu rifatto nel {n} e da allora sopporta anche i camion pesanti.",
        "Mia nonna raccontava che un tempo in questo paese vivevano {n} persone.",
        "Chi vuole arrivare in cima deve portare vestiti caldi e abbastanza acqua.",
        "Al mercato si vendono formaggio, miele e mele delle fattorie vicine.",
    ),
    "pt": (
        "O velho farol fica nas falésias do norte há mais de cem anos.",
        "De manhã o padeiro abre a loja antes de passarem os primeiros comboios.",
        "Muitos caminhantes escolhem o trilho do vale porque fica à sombra das árvores.",
        "No ano passado a cidade construiu uma nova biblioteca com uma grande sala de leitura.",
        "No inverno o lago gela e as crianças patinam até à noite.",
        "Ninguém sabia de onde vinha o sino pendurado na torre da igreja.",
        "O museu mostra as ferramentas com que antigamente se faziam navios de madeira.",
        "Depois da chuva toda a rua cheirava a pedra molhada e a erva fresca.",
        "A ponte foi renovada em {n} e desde então aguenta também camiões pesados.",
        "A minha avó contava que antes viviam {n} pessoas nesta aldeia.",
        "Quem quiser chegar ao cume deve levar roupa quente e água suficiente.",
        "No mercado vendem-se queijo, mel e maçãs das quintas vizinhas.",
    ),
    "nl": (
        "De oude vuurtoren staat al meer dan honderd jaar op de kliffen in het noorden.",
        "In de ochtend opent de bakker zijn winkel, nog voordat de eerste treinen rijden.",
        "Veel wandelaars kiezen het pad door het dal omdat het in de schaduw van de bomen ligt.",
        "Vorig jaar heeft de stad een nieuwe bibliotheek met een grote leeszaal gebouwd.",
        "In de winter vriest het meer dicht en schaatsen de kinderen tot de avond.",
        "Niemand wist precies waar de klok vandaan kwam die in de toren van de kerk hing.",
        "Het museum toont gereedschap waarmee men vroeger schepen van hout bouwde.",
        "Na de regen rook de hele straat naar natte steen en vers gras.",
        "De brug werd in {n} vernieuwd en draagt sindsdien ook zware vrachtwagens.",
        "Mijn grootmoeder vertelde vaak dat er vroeger {n} mensen in dit dorp woonden.",
        "Wie de top wil bereiken, moet warme kleren en genoeg water meenemen.",
        "Op de markt verkoopt men kaas, honing en appels van de boerderijen in de buurt.",
    ),
    "sv": (
        "Den gamla fyren har stått på klipporna i norr i mer än hundra år.",
        "På morgonen öppnar bagaren sin butik innan de första tågen går.",
        "Många vandrare väljer stigen genom dalen eftersom den ligger i trädens skugga.",
        "Förra året byggde staden ett nytt bibliotek med en stor läsesal.",
        "På vintern fryser sjön och barnen åker skridskor tills det blir kväll.",
        "Ingen visste riktigt varifrån klockan kom som hängde i kyrkans torn.",
        "Museet visar verktyg som man förr använde för att bygga skepp av trä.",
        "Efter regnet luktade hela gatan av våt sten och färskt gräs.",
        "Bron förnyades år {n} och bär sedan dess även tunga lastbilar.",
        "Min mormor berättade ofta att det förr bodde {n} människor i byn.",
        "Den som vill nå toppen bör ta med varma kläder och tillräckligt med vatten.",
        "På torget säljer man ost, honung och äpplen från gårdarna i närheten.",
    ),
    "pl": (
        "Stara latarnia morska stoi na klifach na północy od ponad stu lat.",
        "Rano piekarz otwiera sklep, zanim odjadą pierwsze pociągi.",
        "Wielu turystów wybiera ścieżkę przez dolinę, ponieważ leży w cieniu drzew.",
        "W zeszłym roku miasto zbudowało nową bibliotekę z dużą czytelnią.",
        "Zimą jezioro zamarza i dzieci jeżdżą na łyżwach aż do wieczora.",
        "Nikt nie wiedział dokładnie, skąd pochodzi dzwon wiszący w wieży kościoła.",
        "Muzeum pokazuje narzędzia, którymi dawniej budowano drewniane statki.",
        "Po deszczu cała ulica pachniała mokrym kamieniem i świeżą trawą.",
        "Most odnowiono w roku {n} i od tego czasu przejeżdżają po nim ciężkie samochody.",
        "Moja babcia często opowiadała, że dawniej w tej wsi mieszkało {n} ludzi.",
        "Kto chce dojść na szczyt, powinien zabrać ciepłe ubranie i dość wody.",
        "Na targu sprzedaje się ser, miód i jabłka z okolicznych gospodarstw.",
    ),
    "ru": (
        "Старый маяк стоит на скалах на севере уже больше ста лет.",
        "Утром пекарь открывает лавку ещё до того, как пойдут первые поезда.",
        "Многие путники выбирают тропу через долину, потому что она лежит в тени деревьев.",
        "В прошлом году город построил новую библиотеку с большим читальным залом.",
        "Зимой озеро замерзает, и дети катаются на коньках до самого вечера.",
        "Никто точно не знал, откуда взялся колокол, висевший в башне церкви.",
        "Музей показывает инструменты, которыми раньше строили деревянные корабли.",
        "После дождя вся улица пахла мокрым камнем и свежей травой.",
        "Мост обновили в {n} году, и с тех пор по нему ездят тяжёлые грузовики.",
        "Моя бабушка часто рассказывала, что раньше в деревне жило {n} человек.",
        "Кто хочет дойти до вершины, должен взять тёплую одежду и достаточно воды.",
        "На рынке продают сыр, мёд и яблоки с окрестных хозяйств.",
    ),
    "ja": (
        "古い灯台は百年以上も北の崖の上に立っています。",
        "朝になると、始発の電車が走る前にパン屋が店を開けます。",
        "木陰が続くので、多くの人が谷を通る道を選んで歩きます。",
        "昨年、この町は広い読書室のある新しい図書館を建てました。",
        "冬には湖が凍り、子どもたちは夕方までスケートをします。",
        "教会の塔に下がっている鐘がどこから来たのか、誰も知りませんでした。",
        "博物館では、昔木の船を造るのに使われた道具を見ることができます。",
        "雨のあと、通り全体が濡れた石と新しい草の匂いに包まれました。",
        "橋は{n}年に直され、それからは重いトラックも通れるようになりました。",
        "祖母は、昔この村には{n}人が住んでいたとよく話していました。",
        "頂上まで登りたい人は、暖かい服と十分な水を持って行くべきです。",
        "市場では近くの農家のチーズや蜂蜜やりんごが売られています。",
    ),
}
