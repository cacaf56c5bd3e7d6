module aggregatord

go 1.24.0
