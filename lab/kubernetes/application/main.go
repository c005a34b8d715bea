// What runs in pods: every TCP connection is told the address it came from, then its lines come back.
// A datagram is answered with the address it came from. Called as "pause" it does nothing until it
// is told to end. Called with an address it connects there once, until it has an answer, and ends well.
package main

import (
	"bufio"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

const port = ":7777"

// patience is how long an answer may take.
const patience = 10 * time.Second

func main() {
	if len(os.Args) > 1 {
		if err := ask(os.Args[1]); err != nil {
			log.Fatal(err)
		}
		return
	}
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

func ask(address string) error {
	connection, err := net.DialTimeout("tcp", address+port, patience)
	if err != nil {
		return err
	}
	defer connection.Close()
	connection.SetDeadline(time.Now().Add(patience))
	_, err = bufio.NewReader(connection).ReadString('\n')
	return err
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
