module node-network/application

go 1.24.0
