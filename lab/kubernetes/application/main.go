// What runs in pods: every TCP connection is told the address it came from, then its lines come back.
// A datagram is answered with the address it came from. Called as "pause" it does nothing until it
// is told to end.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

const port = ":7777"

func main() {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM, syscall.SIGINT)
	if filepath.Base(os.Args[0]) != "pause" {
		listener, err := net.Listen("tcp", port)
		if err != nil {
			log.Fatal(err)
		}
		go accept(listener)
		packets, err := net.ListenPacket("udp", port)
		if err != nil {
			log.Fatal(err)
		}
		go answer(packets)
	}
	<-ended
}

func accept(listener net.Listener) {
	for {
		connection, err := listener.Accept()
		if err != nil {
			log.Print(err)
			continue
		}
		go func() {
			defer connection.Close()
			fmt.Fprintln(connection, host(connection.RemoteAddr()))
			io.Copy(connection, connection)
		}()
	}
}

func answer(packets net.PacketConn) {
	datagram := make([]byte, 512)
	for {
		_, peer, err := packets.ReadFrom(datagram)
		if err != nil {
			log.Print(err)
			continue
		}
		packets.WriteTo([]byte(host(peer)), peer)
	}
}

func host(address net.Addr) string {
	name, _, _ := net.SplitHostPort(address.String())
	return name
}
