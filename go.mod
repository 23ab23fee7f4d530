module example.com/singleflight

go 1.25.0
