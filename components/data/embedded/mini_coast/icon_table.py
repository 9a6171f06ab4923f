"""Which emoji belong to which kind of thing: our own labels over the English names of the `emoji` package."""

KINDS: dict[str, str] = {
    "animal": """ant badger bat bear beaver beetle bird bison boar bug butterfly camel cat chicken cockroach cow crab
        cricket crocodile deer dodo dog dolphin donkey dragon duck eagle elephant ewe fish flamingo fly fox frog
        giraffe goat goose gorilla hamster hedgehog horse jellyfish kangaroo koala leopard lion lizard llama lobster
        mammoth monkey moose mosquito mouse octopus orangutan otter owl ox panda parrot peacock penguin pig poodle
        rabbit raccoon ram rat rhinoceros rooster sauropod scorpion seal shark shrimp skunk sloth snail snake spider
        squid swan tiger turkey turtle unicorn whale wolf zebra""",
    "food": """avocado bacon bagel banana beans bell_pepper bento_box blueberries bread broccoli burrito butter
        candy carrot cherries chestnut coconut cooked_rice cookie cooking croissant cucumber cupcake curry_rice
        custard cut_of_meat dango doughnut dumpling ear_of_corn egg eggplant falafel flatbread garlic grapes
        green_apple green_salad hamburger hot_dog ice_cream kiwi_fruit leafy_green lemon lollipop mango melon
        moon_cake oden olive onion pancakes peach peanuts pear pie pineapple pizza popcorn potato poultry_leg pretzel
        red_apple rice_ball sandwich shaved_ice shortcake spaghetti strawberry sushi taco tamale tangerine tomato
        waffle watermelon""",
    "vehicle": """ambulance automobile bicycle bus canoe delivery_truck fire_engine helicopter kick_scooter
        light_rail locomotive metro minibus monorail motor_scooter oncoming_automobile oncoming_bus
        oncoming_police_car oncoming_taxi pickup_truck police_car railway_car rocket sailboat ship speedboat
        sport_utility_vehicle taxi tractor train tram tram_car trolleybus articulated_lorry auto_rickshaw
        bullet_train high-speed_train flying_saucer sled""",
    "clothing": """backpack billed_cap bikini briefs coat crown dress flat_shoe glasses gloves goggles handbag
        high-heeled_shoe hiking_boot jeans kimono lab_coat man’s_shoe necktie one-piece_swimsuit purse
        running_shoe safety_vest sari scarf shorts socks t-shirt thong_sandal top_hat woman’s_boot woman’s_clothes
        woman’s_hat woman’s_sandal clutch_bag ballet_shoes graduation_cap""",
    "plant": """blossom bouquet cactus cherry_blossom deciduous_tree evergreen_tree fallen_leaf four_leaf_clover
        herb hibiscus hyacinth leaf_fluttering_in_wind lotus maple_leaf mushroom palm_tree potted_plant rose rosette
        seedling sheaf_of_rice sunflower tulip wilted_flower leafless_tree""",
    "building": """bank castle church convenience_store department_store factory hospital hotel house
        house_with_garden hut Japanese_castle Japanese_post_office love_hotel mosque office_building post_office
        school synagogue tent Tokyo_tower Statue_of_Liberty hindu_temple lighthouse""",
    "instrument": """accordion banjo drum flute guitar harp long_drum maracas musical_keyboard saxophone trumpet
        violin trombone postal_horn bell microphone""",
    "ball": """american_football baseball basketball pool_8_ball rugby_football soccer_ball softball tennis
        volleyball""",
}
